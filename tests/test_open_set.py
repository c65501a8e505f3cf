"""Queries of unknown classes enter no score of labels, and the scores that detect them are right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_metabayes import Episodes, MetaLearner, UsageError, evaluate
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.evaluation.settings import EvalSettings
from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear
from pyro_metabayes.models.parts.feature_density import log_density
from pyro_metabayes.open_set.scores import OPEN_SET
from pyro_metabayes.open_set.separation import auroc, false_positive_rate, threshold
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.training.step_metrics import measure
from tests.commands import call, on_features, ran, results_of
from tests.pairs import Pair

WAY, SHOT, QUERY, UNKNOWN, WIDTH = 3, 2, 5, 2, 8
NAMES = [score.name for score in OPEN_SET]


@pytest.fixture(scope="module")
def bank() -> Bank:
    noise = np.random.default_rng(0)
    x = (noise.normal(size=(24, 1, WIDTH)) + 0.6 * noise.normal(size=(24, 12, WIDTH))).reshape(-1, WIDTH)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    splits = {"train": np.arange(8), "val": np.arange(8, 16), "test": np.arange(16, 24)}
    return Bank.from_arrays(x, np.arange(24).repeat(12), splits)


def tasks(bank: Bank, unknown: int) -> TaskStream:
    return bank.tasks("test", WAY, SHOT, QUERY, unknown=unknown)


def open_set_task(bank: Bank, number: int = 4) -> Episodes:
    return tasks(bank, UNKNOWN).batch(0, number)


# ---------------------------------------------------------------- tasks


def test_unknown_classes_do_not_change_the_others(bank: Bank) -> None:
    """Support sets, known queries and their labels bit for bit; the unknown queries are of none of the classes."""
    closed, opened = tasks(bank, 0).batch(0, 70), open_set_task(bank, 70)
    number = WAY * QUERY
    assert closed.unknown_mask is None and opened.unknown_mask is not None
    for name in ("support_x", "support_y", "classes"):
        assert torch.equal(getattr(closed, name), getattr(opened, name)), name
    for name in ("query_x", "query_y", "query_mask"):
        assert torch.equal(getattr(closed, name), getattr(opened, name)[:, :number]), name
    assert torch.equal(opened.unknown_mask, ~opened.query_mask)
    assert opened.unknown_mask.sum(1).tolist() == [UNKNOWN * QUERY] * 70
    rows = {tuple(row.tolist()): label for row, label in zip(bank.in_memory, bank.labels.tolist(), strict=True)}
    for task in range(70):
        found = [rows[tuple(row.tolist())] for row in opened.query_x[task, number:]]
        assert not set(found) & set(opened.classes[task].tolist())  # type: ignore[index]
        assert sorted(found.count(label) for label in set(found)) == [QUERY] * UNKNOWN
        assert len({tuple(row.tolist()) for row in opened.query_x[task, number:]}) == UNKNOWN * QUERY


def test_a_guide_sees_them_and_no_label_says_which_they_are(bank: Bank) -> None:
    episodes = open_set_task(bank)
    observed = episodes.observed()
    assert observed.query_mask.all() and not hasattr(observed, "unknown_mask")
    assert torch.equal(episodes.seen_queries, observed.query_mask)
    transductive = MetaLearner.pretrained("transductive").float()
    moved = replace(episodes, query_x=torch.where(episodes.unknown_mask.unsqueeze(-1), -1.0, 1.0) * episodes.query_x)  # type: ignore[union-attr]
    with torch.no_grad():
        means = [transductive.guide.posterior(transductive.featured(e).observed()).mean for e in (episodes, moved)]
    assert not torch.allclose(*means)


def test_features_relative_to_the_task_know_nothing_of_the_masks(bank: Bank) -> None:
    """The frame of all points of a task, whether or not they have a label."""
    learner, episodes = MetaLearner.pretrained("transductive").float(), open_set_task(bank)
    with torch.no_grad():
        torch.testing.assert_close(
            learner.featured(episodes).query_x, learner.featured(episodes.observed()).query_x, rtol=0, atol=0
        )


# ---------------------------------------------------------------- no score of labels counts them


def closed_set(learner: MetaLearner, episodes: Episodes) -> dict[str, Any]:
    """The metrics that use labels."""
    metrics = evaluate(learner, episodes, EvalSettings(len(episodes.query_x), samples=4), progress=False).metrics
    return {name: value for name, value in metrics.items() if name not in (*NAMES, "seconds")}


INDUCTIVE = [Pair("savi", "conditional"), Pair("proto", "flat"), Pair("maml", "flat"), Pair("laplace")]


@pytest.mark.parametrize("pair", INDUCTIVE, ids=str)
def test_metrics_of_labels_are_those_without_unknown_classes(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks(6)
    number = episodes.query_x.shape[1] // 2
    first = torch.arange(episodes.query_x.shape[1]).expand(6, -1) < number
    closed = replace(episodes, query_mask=first)
    opened = replace(closed, unknown_mask=~first)
    assert closed_set(learner, opened) == closed_set(learner, closed)
    other_labels = replace(opened, query_y=torch.where(first, opened.query_y, 0))
    assert closed_set(learner, other_labels) == closed_set(learner, closed)
    planted = replace(episodes, query_y=other_labels.query_y)  # unknown queries counted as known
    assert closed_set(learner, planted) != closed_set(learner, closed)
    with pytest.raises(UsageError, match="masked in query_mask, got"):
        closed_set(learner, replace(opened, query_mask=torch.ones_like(first)))


@pytest.mark.parametrize("pair", INDUCTIVE, ids=str)
def test_no_loss_counts_them(pair: Pair) -> None:
    """Value and metrics of a training step, for posteriors that see query labels too."""
    learner, episodes = pair.learner(), pair.tasks()
    first = torch.arange(episodes.query_x.shape[1]).expand(episodes.num_tasks, -1) < 4
    closed = replace(episodes, query_mask=first)
    opened = replace(closed, unknown_mask=~first, query_y=torch.where(first, episodes.query_y, 0))
    with noise_of(0):
        expected = learner(closed)
    with noise_of(0):
        got = learner(opened)
    assert "loss" in got
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    one, other = (measure(learner, data, seed=0)[0] for data in (closed, opened))
    assert all(torch.equal(one[name], other[name]) for name in ("accuracy", "nll"))


def test_metrics_over_tasks_of_a_bank_are_those_without_unknown_classes(bank: Bank) -> None:
    learner = MetaLearner.pretrained("inductive").float()
    closed, opened = (evaluate(learner, tasks(bank, n), EvalSettings(40), progress=False) for n in (0, UNKNOWN))
    for name in ("accuracy", "nll", "brier"):
        np.testing.assert_allclose(opened.per_task[name], closed.per_task[name], rtol=1e-4, atol=1e-5)
    assert all(closed.metrics[name] is None for name in NAMES)
    assert opened.metrics["unknown_auroc_information"] is None, "a point estimate has none"
    for name in set(NAMES) - {"unknown_auroc_information", "unknown_fpr95_information"}:
        entry, values = opened.metrics[name], opened.per_task[name]
        assert entry["mean"] == pytest.approx(values.mean()) and values.shape == (40,)
        assert entry["ci95"] == pytest.approx(1.96 * values.std() / 40**0.5)
    assert opened.metrics["unknown_auroc_entropy"]["mean"] > 0.6
    assert opened.metrics["unknown_auroc_evidence"]["mean"] > 0.6


# ---------------------------------------------------------------- the scores


def random_scores() -> tuple[Tensor, Tensor, Tensor]:
    """Random scores with ties, and queries that are neither known nor unknown."""
    torch.manual_seed(1)
    scores, kind = torch.randint(12, (20, 40)).double(), torch.randint(3, (20, 40))
    return scores, kind == 0, kind == 1


def test_separation_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, known, unknown = random_scores()
    got = auroc(scores, known, unknown), false_positive_rate(scores, known, unknown)
    for task in range(len(scores)):
        part = known[task] | unknown[task]
        s, is_known = scores[task][part].numpy(), known[task][part].numpy()
        assert got[0][task].item() == pytest.approx(metrics.roc_auc_score(~is_known, s))
        fpr, tpr, _ = metrics.roc_curve(is_known, -s, drop_intermediate=False)
        assert got[1][task].item() == pytest.approx(fpr[tpr >= 0.95].min())


def test_separation_by_hand() -> None:
    scores, known, unknown = random_scores()
    limit = threshold(scores, known)
    for task in range(len(scores)):
        k, u = scores[task][known[task]].tolist(), scores[task][unknown[task]].tolist()
        wins = [(b > a) + (a == b) / 2 for a in k for b in u]
        assert auroc(scores, known, unknown)[task].item() == pytest.approx(np.mean(wins))
        smallest = min(t for t in k if np.mean([value <= t for value in k]) >= 0.95)
        assert limit[task].item() == smallest
        share = np.mean([value <= smallest for value in u])
        assert false_positive_rate(scores, known, unknown)[task].item() == pytest.approx(share)


@pytest.mark.parametrize("head", [Cosine(3.0), CosineOffset(3.0), Linear(0.5)], ids=lambda head: type(head).__name__)
def test_the_density_is_that_of_the_classes_of_the_head(head: Head) -> None:
    """Its components have the head's probabilities as posterior, and it integrates to one up to a constant."""
    torch.manual_seed(0)
    head = head.double()
    w = torch.randn(2, 1, 4, head.num_weights(3)).double()
    x = torch.nn.functional.normalize(torch.randn(1, 200_000, 3).double(), dim=-1)
    uniform = 4 * math.pi  # area of the sphere
    if isinstance(head, Linear):
        x, uniform = 5 * (2 * torch.rand(1, 200_000, 3).double() - 1), 10.0**3
    got = log_density(head, w, x)
    assert got is not None and got.shape == (2, 1, 200_000)
    integral = (got.exp().mean(-1) * uniform).squeeze(1).detach()
    constant = (math.pi / 0.5) ** 1.5 if isinstance(head, Linear) else 4 * math.pi * math.sinh(3) / 3
    constant *= math.exp(0 if isinstance(head, Linear) else math.log(4) * (type(head) is Cosine))
    torch.testing.assert_close(integral, torch.full_like(integral, constant), rtol=0.02, atol=0)
    means = w[..., :3] / 2 if isinstance(head, Linear) else torch.nn.functional.normalize(w[..., :3], dim=-1)
    distance = (x.unsqueeze(-2) - means.unsqueeze(-3)).square().sum(-1)[..., :9, :]
    component = -0.5 * distance if isinstance(head, Linear) else 3 * (1 - distance / 2)
    prior = {
        Cosine: torch.zeros(2, 1, 4).double(),
        CosineOffset: 3.0 * w[..., -1],
        Linear: 0.5 * (w[..., -1] + w[..., :3].square().sum(-1) / 4),
    }[type(head)].log_softmax(-1)
    joint = component + prior.unsqueeze(-2)
    expected = Categorical(logits=head.outputs(w, x[:, :9])).logits
    torch.testing.assert_close(joint.log_softmax(-1), expected.detach(), rtol=0, atol=1e-9)


OTHERS = [Pair("laplacian_shot", head="linear", model="laplacian_shot"), Pair("leo", model="leo")]


@pytest.mark.parametrize("pair", OTHERS, ids=str)
def test_other_predictions_have_no_density(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks(4)
    first = torch.arange(episodes.query_x.shape[1]).expand(4, -1) < 4
    opened = replace(episodes, query_mask=first, unknown_mask=~first)
    metrics = evaluate(learner, opened, EvalSettings(4, samples=2), progress=False).metrics
    assert metrics["unknown_auroc_evidence"] is None and metrics["unknown_auroc_entropy"] is not None


# ---------------------------------------------------------------- commands


def test_a_run_has_the_scores_in_its_results_and_its_table(features: Path, tmp_path: Path) -> None:
    settings = [*on_features(features), "guide=savi", "task.way=3", f"hydra.run.dir={tmp_path / 'run'}"]
    out = ran("run", *settings, "task.unknown=2").out
    results = results_of(tmp_path / "run")
    assert results["unknown"] == 2 and json.loads(json.dumps(results)) == results
    for name in NAMES:
        assert results[name]["ci95"] > 0, name
    with np.load(tmp_path / "run/tasks.npz") as archive:
        assert set(NAMES) <= set(archive)
    for title in ("entropy", "mutual information", "-log evidence", "FPR at 95% TPR %"):
        assert title in out
    assert f"entropy of at most {results['unknown_entropy_threshold']['mean']:.3f}" in out
    closed = ran("evaluate", str(tmp_path / "run"), "task.unknown=0").out
    assert "FPR" not in closed
    again = results_of(tmp_path / "run/evaluations/task.unknown=0")
    for name in ("accuracy", "nll", "brier", "elbo", "kl", "prior_information", "posterior_logit_sd"):
        assert again[name] == pytest.approx(results[name], rel=1e-5), name
    assert ran("verify", str(tmp_path / "run")).code == 0


WRONG = {
    "task.unknown=4": "expected at least task.way + task.unknown = 3 + 4 classes in the test split, got 6; lower",
    "task.unknown=-1": "expected task.unknown >= 0, got -1",
    "task.unknown=2.5": "task.unknown",
    "task.unknown=two": "task.unknown",
}


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("setting", WRONG)
def test_wrong_numbers_of_classes_are_refused(setting: str, features: Path) -> None:
    assert WRONG[setting] in call("run", *on_features(features), "guide=proto", "task.way=3", setting).error
    assert not list(Path().rglob("results.json"))


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("data", [["data=gaussian_features"], ["data=sinusoid", "guide=maml"]], ids=str)
def test_sources_without_unknown_classes_are_refused(data: list[str]) -> None:
    error = call("run", *data, "task.unknown=1", "train.steps=1").error
    assert error.startswith("expected a data set of classes for task.unknown=1, got data=")


def test_other_commands_have_no_unknown_classes(features: Path) -> None:
    assert "expected no task.unknown here" in call("gold", "run=run", "task.unknown=2").error


def test_tasks_without_unknown_queries_are_refused(bank: Bank) -> None:
    episodes = open_set_task(bank)
    none = replace(episodes, unknown_mask=torch.zeros_like(episodes.query_mask))
    with pytest.raises(UsageError, match="at least one query of an unknown class per task, got none in 1 of 1 tasks"):
        evaluate(MetaLearner.pretrained("inductive").float(), none, progress=False)
    with pytest.raises(UsageError, match=r"expected unknown_mask of torch\.bool and shape"):
        replace(episodes, unknown_mask=episodes.query_y)
