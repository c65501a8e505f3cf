"""Case `prediction`: time of predictions with draws, of all scores of an evaluation, and of `predict` of one task."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.measure import Row, Way, rows_of, time_interleaved
from benchmarks.setting import QUERY, STEPS, WAY, Size, Tasks, learner, tasks
from benchmarks.sib_raw import RawSib
from pyro_metabayes import MetaLearner
from pyro_metabayes.evaluation.evaluate import score_batch

FEATURES, DRAWS, OF_PREDICT = 256, 30, 100
REFERENCE = "reference way, accuracy alone (delta)"
REFERENCE_SECONDS = 0.82e-3  # time of REFERENCE per task, measured when the goals were set


def rows(size: Size) -> list[Row]:
    (number,) = size.tasks(32)
    return [
        *_predictions(tasks(number, features=FEATURES), size),
        *_scores(size),
        *_one_task(size),
        *_encoded_task(size),
    ]


def sib(posterior: str, network: str = "ordered", prior: str = "Gaussian") -> MetaLearner:
    settings = {"posterior": posterior, "synthetic_gradient": network}
    return learner("sib", prior, of_guide=settings, features=FEATURES).eval()


def _predictions(data: Tasks, size: Size) -> list[Row]:
    table, observed = [], data.episodes.observed()
    for network in ("ordered", "equivariant"):
        delta, drawn, all_w = (
            f"sib ({network}, delta)",
            f"sib ({network}, normal), {DRAWS} draws",
            f"sib ({network}, normal), {DRAWS} independent draws of all weights",
        )
        of_delta, of_normal = sib("delta", network), sib("normal", network)
        ways: dict[str, Way] = {
            delta: _no_grad(lambda m=of_delta: m.predictive(observed, 1).logits),
            drawn: _no_grad(lambda m=of_normal: m.predictive(observed, DRAWS).logits),
            all_w: _no_grad(lambda m=of_normal: m.posterior_predictive(observed, DRAWS)[1].logits),
        }
        seconds = time_interleaved(ways, size.rounds(24))
        case = f"prediction per task, T={len(data.query)}, D={FEATURES}"
        table += rows_of(case, seconds, {drawn: delta, all_w: delta}, {drawn: "<= 1.8"}, per=len(data.query))
    return table


def _scores(size: Size) -> list[Row]:
    """Time all scores and spreads of an evaluation except joint NLL. The goal is relative to the time of REFERENCE."""
    (number,) = size.tasks(32)
    data = tasks(number, features=FEATURES)
    episodes = data.episodes
    default, flat = f"sib (ordered, normal), {DRAWS} draws", "sib (ordered, delta), flat prior"
    of_normal, of_flat = sib("normal"), sib("delta", prior="Flat")
    ways: dict[str, Way] = {
        REFERENCE: reference(data),
        default: _no_grad(lambda: score_batch(of_normal, episodes, DRAWS)),
        flat: _no_grad(lambda: score_batch(of_flat, episodes, DRAWS)),
    }
    seconds = time_interleaved(ways, size.rounds(20))
    goal = f"<= {0.35e-3 / REFERENCE_SECONDS:.2f} (0.35 ms)"
    case = f"all scores per task, T={number}, D={FEATURES}"
    return rows_of(case, seconds, {default: REFERENCE, flat: REFERENCE}, {default: goal}, per=number)


def _one_task(size: Size) -> list[Row]:
    data = tasks(1, features=FEATURES)
    arrays = data.support.flatten(1, 2)[0].numpy(), data.episodes.support_y[0].numpy(), data.query[0].numpy()
    drawn, delta = f"sib (ordered, normal), {OF_PREDICT} draws", "sib (ordered, delta)"
    of_normal, of_delta = sib("normal"), sib("delta")
    ways: dict[str, Way] = {
        REFERENCE: reference(data),
        drawn: lambda: of_normal.predict(*arrays, OF_PREDICT),
        delta: lambda: of_delta.predict(*arrays),
    }
    seconds = time_interleaved(ways, size.rounds(40), 1 if size.toy else 4)
    goal = f"<= {1e-3 / REFERENCE_SECONDS:.2f} (1 ms)"
    case = f"learner.predict of one task, D={FEATURES}"
    return rows_of(case, seconds, {drawn: REFERENCE, delta: REFERENCE}, {drawn: goal})


def _encoded_task(size: Size) -> list[Row]:
    """Time `predict` of a task whose support set is encoded once, for inductive guides."""
    data = tasks(1, features=FEATURES)
    support = data.support.flatten(1, 2)[0].numpy(), data.episodes.support_y[0].numpy()
    query = data.query[0].numpy()
    ways: dict[str, Way] = {REFERENCE: reference(data)}
    for name, built in _inductive().items():
        ways[name] = partial(built.task(*support, OF_PREDICT).predict, query)
    seconds = time_interleaved(ways, size.rounds(40), 1 if size.toy else 10)
    goals = dict.fromkeys(list(ways)[1:], f"<= {0.4e-3 / REFERENCE_SECONDS:.2f} (0.4 ms)")
    case = f"learner.task(...).predict, {WAY * QUERY} queries, D={FEATURES}"
    return rows_of(case, seconds, dict.fromkeys(goals, REFERENCE), goals)


def _inductive() -> dict[str, MetaLearner]:
    """Return learners with inductive guides, by the name of the row."""
    shared: dict[str, Any] = {"objective": "elbo", "input_shape": [FEATURES], "num_classes": WAY}
    points = {guide: MetaLearner.build("identity", guide, prior="flat", **shared) for guide in ("proto", "maml")}
    drawn = {
        f"{guide}, {prior} prior, {OF_PREDICT} draws": MetaLearner.build("identity", guide, prior=prior, **shared)
        for guide, prior in (("mc", "gaussian"), ("savi", "conditional"))
    }
    return points | drawn | {"inductive, which ships": MetaLearner.pretrained("inductive")}


def reference(data: Tasks) -> Way:
    """Return a function that evaluates the tasks like the released code, one at a time."""
    raw = RawSib(FEATURES, WAY, STEPS)

    def one_by_one() -> None:
        for support, query, labels in zip(data.support, data.query, data.labels, strict=True):
            logits = raw.one_logits(raw.one_adapted(support, query), query)
            logits.topk(1).indices.T.eq(labels).float().sum().item()

    return one_by_one


def _no_grad(way: Way) -> Way:
    return torch.no_grad()(way)
