"""Case `evaluation`: evaluation of tasks on features, by learners, in raw batched PyTorch and task by task."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.measure import Row, Spread, ratios, time_interleaved
from benchmarks.setting import FEATURES, STEPS, WAY, Size, learner, tasks
from benchmarks.sib_raw import RawSib
from pyro_metabayes.evaluation.evaluate import score_batch

SAMPLES = 10
LEARNERS = {
    "sib": ("sib", "Flat", {"of_guide": {"posterior": "delta"}}),
    "proto": ("proto", "Flat", {}),
    "mc": ("mc", "Conditional", {"objective": "monte_carlo.MonteCarlo"}),
    "savi": ("savi", "Conditional", {}),
}


def rows(size: Size) -> list[Row]:
    (number,) = size.tasks(32)
    seconds = time_interleaved(ways(number), size.rounds(20))
    table = []
    for way, times in seconds.items():
        against = {"raw batched, sib": "reference way, sib", "learner, sib": "reference way, sib"}.get(way, "")
        rate = Spread.of([number / value for value in times])
        faster = ratios(seconds, against, way) if against else None
        goal = ">= 6" if way == "learner, sib" else ""
        table.append(Row("evaluation, 32 tasks at once", way, rate, "tasks/s", against, faster, goal))
    return table


def ways(number: int) -> dict[str, Callable[[], object]]:
    """Return the evaluation by each variant.

    Learners compute all scores and collapse metrics of `experiments.run`, the other variants only the accuracy.
    """
    data, raw = tasks(number), RawSib(FEATURES, WAY, STEPS)
    episodes = data.episodes

    @torch.no_grad()
    def batched() -> object:
        logits = raw.logits(raw.adapted(data.support, data.query), data.query)
        return (logits.max(-1).indices == data.labels).float().mean(-1)

    def one_by_one() -> None:
        for support, query, labels in zip(data.support, data.query, data.labels, strict=True):
            logits = raw.one_logits(raw.one_adapted(support, query), query)
            best = logits.topk(1).indices.T
            best.eq(labels.expand_as(best)).flatten().float().sum().mul(100 / len(labels)).item()

    scoring: dict[str, Callable[[], object]] = {"reference way, sib": one_by_one, "raw batched, sib": batched}
    for name, (guide, prior, settings) in LEARNERS.items():
        module = learner(guide, prior, **settings)
        scoring[f"learner, {name}"] = torch.no_grad()(lambda module=module: score_batch(module, episodes, SAMPLES))
    return scoring
