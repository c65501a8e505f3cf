"""Scores, compared with slow loops over their formulae and with known values."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Categorical, Exponential, Normal
from torch import Tensor

from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError
from pyro_metabayes.diagnostics.collapse import collapse_metrics, prior_spread
from pyro_metabayes.diagnostics.collapse_metrics import summary
from pyro_metabayes.evaluation import evaluate as evaluation
from pyro_metabayes.evaluation.batch_scores import BatchScores
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate, score_batch
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.score import TaskScores
from pyro_metabayes.evaluation.scores import (
    calibration_error,
    confidence_and_hits,
    log_mean_exp,
    masked_mean,
    scores_of,
)
from pyro_metabayes.seeding import drawing, noise_of
from tests.pairs import HEADS, Pair, random_tasks, stream_of

SAMPLES, TASKS, QUERIES, WAY = 4, 3, 5, 3


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def predicted() -> tuple[Tensor, Tensor, Tensor]:
    """log p [L, T, Q, C], labels and a ragged mask [T, Q]."""
    log_probs = (2 * torch.randn(SAMPLES, TASKS, QUERIES, WAY)).log_softmax(-1)
    mask = torch.rand(TASKS, QUERIES) < 0.7
    mask[:, 0] = True
    return log_probs, torch.randint(WAY, (TASKS, QUERIES)), mask


def classification_scores(log_probs: Tensor, labels: Tensor, mask: Tensor) -> TaskScores:
    """Scores [T] of log p(y = c | x, w_l) [L, T, Q, C]."""
    return scores_of(Categorical(logits=log_probs), labels, mask)


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities)


def by_hand(log_probs: Tensor, labels: Tensor, mask: Tensor) -> dict[str, list[float]]:
    """Every score by its definition, one number at a time."""
    names = ("accuracy", "accuracy_of_sample", "nll", "brier", "mutual_information")
    scores: dict[str, list[float]] = {name: [] for name in names}
    for task in range(TASKS):
        kept = [i for i in range(QUERIES) if mask[task, i]]
        hits, hits_of_samples, nll, brier, information = 0, 0, 0.0, 0.0, 0.0
        for i in kept:
            right = int(labels[task, i])
            of_samples = [[math.exp(float(log_probs[s, task, i, c])) for c in range(WAY)] for s in range(SAMPLES)]
            mean = [sum(p[c] for p in of_samples) / SAMPLES for c in range(WAY)]
            hits += mean.index(max(mean)) == right
            hits_of_samples += sum(p.index(max(p)) == right for p in of_samples)
            information += entropy(mean) - sum(map(entropy, of_samples)) / SAMPLES
            nll -= math.log(mean[right])
            brier += sum((mean[c] - (c == right)) ** 2 for c in range(WAY))
        scores["accuracy"].append(hits / len(kept))
        scores["accuracy_of_sample"].append(hits_of_samples / SAMPLES / len(kept))
        scores["mutual_information"].append(information / len(kept))
        scores["nll"].append(nll / len(kept))
        scores["brier"].append(brier / len(kept))
    return scores


def test_scores_are_their_definitions(predicted: tuple[Tensor, Tensor, Tensor]) -> None:
    got = classification_scores(*predicted)
    expected = by_hand(*predicted)
    assert got.keys() == expected.keys() | {"nll_monte_carlo_bias"}
    for name, values in expected.items():
        assert got[name].tolist() == pytest.approx(values, rel=1e-12), name


def test_masked_queries_do_not_count(predicted: tuple[Tensor, Tensor, Tensor]) -> None:
    log_probs, labels, mask = predicted
    expected = classification_scores(log_probs, labels, mask)
    garbage = torch.where(mask.unsqueeze(-1), log_probs, -50 * torch.rand_like(log_probs))
    other_labels = torch.where(mask, labels, (labels + 1) % WAY)
    for name, value in classification_scores(garbage, other_labels, mask).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_probabilities_are_averaged_and_not_logits() -> None:
    """Logits (9, 0, 0) and (-12, 0, 0): the mean probability of class 0 is near 1/2, not 0.1."""
    logits = torch.tensor([[9.0, 0.0, 0.0], [-12.0, 0.0, 0.0]]).view(2, 1, 1, 3)
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    scores = classification_scores(logits.log_softmax(-1), labels, mask)
    of_mean_logit = logits.mean(0).log_softmax(-1)[0, 0]
    assert of_mean_logit.argmax() != 0 and of_mean_logit[0] < math.log(0.11)
    assert scores["accuracy"].item() == 1
    assert scores["nll"].item() == pytest.approx(
        -math.log((1 / (1 + 2 * math.exp(-9)) + math.exp(-12) / 2) / 2), abs=1e-6
    )


# ---------------------------------------------------------------- numbers


def cumulative(z: float) -> float:
    """The CDF of the standard normal distribution."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_scores_of_numbers_are_their_definitions() -> None:
    """One number at a time; labels far out, so that some are outside of the central 90 per cent."""
    mean, sd, y = torch.randn(SAMPLES, TASKS, QUERIES, 2), 0.4, 1.5 * torch.randn(TASKS, QUERIES, 2)
    mask = torch.rand(TASKS, QUERIES) < 0.7
    mask[:, 0] = True
    got = scores_of(Normal(mean, sd).to_event(1), y, mask)
    assert got.keys() == {"nll", "nll_monte_carlo_bias", "mse", "coverage90"}
    garbage = torch.where(mask.unsqueeze(-1), y, 1e3)
    for task in range(TASKS):
        kept = [i for i in range(QUERIES) if mask[task, i]]
        density = [
            [math.exp(Normal(mean[s, task, i], sd).log_prob(y[task, i]).sum().item()) for i in kept]
            for s in range(SAMPLES)
        ]
        errors = [float(mean[:, task, i, k].mean() - y[task, i, k]) ** 2 for i in kept for k in range(2)]
        inside = [
            0.05
            <= sum(cumulative(float(y[task, i, k] - mean[s, task, i, k]) / sd) for s in range(SAMPLES)) / SAMPLES
            <= 0.95
            for i in kept
            for k in range(2)
        ]
        nll = -sum(math.log(sum(of_sample[i] for of_sample in density) / SAMPLES) for i in range(len(kept)))
        expected = {
            "nll": nll / len(kept),
            "mse": np.mean(errors),
            "coverage90": np.mean(inside),
        }
        assert {name: got[name][task].item() for name in expected} == pytest.approx(expected, rel=1e-10)
    assert 0 < got["coverage90"].mean() < 1
    for name, value in scores_of(Normal(mean, sd).to_event(1), garbage, mask).items():
        torch.testing.assert_close(value, got[name], msg=name)


def test_coverage_is_that_of_the_mixture_of_draws() -> None:
    """Draws that lie far apart: the label between them is inside, though no single draw would have it so."""
    mean, mask = torch.tensor([-10.0, 10.0]).view(2, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    for label, inside in ((0.0, 1), (10.0, 1), (13.0, 0)):
        scores = scores_of(Normal(mean, 1.0).to_event(1), torch.full((1, 1, 1), label), mask)
        assert scores["coverage90"].item() == inside


def test_a_likelihood_that_has_no_scores_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected .* a registered family \(.*\), got Exponential; register"):
        scores_of(Exponential(torch.ones(1, 1, 1)), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_one_sample_is_its_own_average() -> None:
    values = torch.randn(1, 5)
    torch.testing.assert_close(log_mean_exp(values), values[0])


def test_a_task_without_queries_scores_zero_not_nan() -> None:
    assert masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0, 0]


# ---------------------------------------------------------------- calibration


def ece_by_hand(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """sum_b (n_b / n) |accuracy_b - confidence_b| over 15 equal bins (lower, upper] of the confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges, total = np.linspace(0, 1, 16), 0.0
    for lower, upper in pairwise(edges):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("way", [2, 5])
def test_calibration_error_has_fifteen_bins(way: int) -> None:
    probabilities = (2 * torch.randn(400, way)).softmax(-1).float()
    labels = torch.randint(way, (400,))
    expected = ece_by_hand(probabilities.double().numpy(), labels.numpy())
    assert calibration_error(*confidence_and_hits(probabilities, labels)) == pytest.approx(expected, abs=1e-6)


def test_calibration_of_the_sure_and_of_the_right() -> None:
    sure = torch.nn.functional.one_hot(torch.zeros(10, dtype=torch.long), 4).float()
    assert calibration_error(*confidence_and_hits(sure, torch.zeros(10, dtype=torch.long))) == pytest.approx(0)
    assert calibration_error(*confidence_and_hits(sure, torch.ones(10, dtype=torch.long))) == pytest.approx(1)
    rounded = torch.full((10,), 1 + 2e-7)  # a mean of probabilities may be; it is no logit
    assert calibration_error(rounded, torch.ones(10).bool()) == pytest.approx(0)


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.tile([0.2, 0.4, 0.6, 0.8], 10)
    assert ci95_of(values) == pytest.approx(1.96 * math.sqrt(0.05) / math.sqrt(40))


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    "pair", [Pair("savi", "conditional"), Pair("sib", "flat", settings={"posterior": "delta"})], ids=str
)
def test_evaluation_is_the_mean_over_tasks(pair: Pair) -> None:
    learner, episodes = pair.learner(), random_tasks(num_tasks=50)
    before = torch.get_rng_state()
    evaluation = evaluate(learner, stream_of(episodes), EvalSettings(50, samples=6), seed=2, progress=False)
    assert torch.equal(before, torch.get_rng_state()), "evaluation draws from the noise of training"
    again = evaluate(learner, stream_of(episodes), EvalSettings(50, samples=6), seed=2, progress=False)
    figures = evaluation.metrics
    assert {**figures, "seconds": 0} == {**again.metrics, "seconds": 0}
    for name in ("nll", "brier"):
        assert figures[name] == pytest.approx(evaluation.per_task[name].mean())
    accuracy = evaluation.per_task["accuracy"]
    assert figures["accuracy"]["mean"] == pytest.approx(accuracy.mean())
    assert figures["accuracy"]["ci95"] == pytest.approx(1.96 * accuracy.std() / math.sqrt(50))
    has_bound = pair.guide == "savi"
    assert all((figures[name] is None) != has_bound for name in ("elbo", "kl", "posterior_sd"))


def test_evaluation_of_a_point_mass_is_the_scores_of_its_predictions() -> None:
    learner, episodes = Pair("proto", "flat").learner(), random_tasks(num_tasks=40)
    with torch.no_grad():
        logits = learner.model.outputs(learner.guide.posterior(episodes.observed()).mean, episodes.query_x)
    expected = classification_scores(logits.log_softmax(-1).unsqueeze(0), episodes.query_y, episodes.query_mask)
    got = evaluate(learner, stream_of(episodes), EvalSettings(40), seed=0, progress=False)
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(got.per_task[name]), value)
    labels = episodes.query_y.flatten()
    expected_ece = ece_by_hand(logits.softmax(-1).flatten(0, 1).numpy(), labels.numpy())
    assert got.metrics["ece"] == pytest.approx(expected_ece, abs=1e-6)


def test_tasks_too_large_for_a_batch_are_scored_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand classes, ten draws: the predictions of 32 tasks would not fit into memory."""
    learner, episodes = Pair("proto", "flat").learner(), random_tasks(num_tasks=40)
    sizes: list[int] = []

    def scores(learner: MetaLearner, tasks: Episodes, *settings: Any) -> BatchScores:
        sizes.append(tasks.num_tasks)
        return score_batch(learner, tasks, *settings)

    monkeypatch.setattr(evaluation, "score_batch", scores)
    together = evaluate(learner, stream_of(episodes), EvalSettings(40), seed=0, progress=False)
    monkeypatch.setattr(evaluation, "MOST_NUMBERS", 1)
    alone = evaluate(learner, stream_of(episodes), EvalSettings(40), seed=0, progress=False)
    assert sizes == [32, 8, *[1] * 40]
    for name, value in together.per_task.items():
        np.testing.assert_allclose(alone.per_task[name], value, rtol=1e-5, atol=1e-6)
    assert alone.metrics["ece"] == pytest.approx(together.metrics["ece"], abs=1e-6)


def test_one_sample_gives_finite_figures() -> None:
    """eval.samples=1 is allowed: no figure may be NaN, which no results file takes."""
    learner, episodes = Pair("savi", "conditional").learner(), random_tasks()
    figures = evaluate(learner, stream_of(episodes), EvalSettings(3, samples=1), seed=0, progress=False).metrics
    numbers = [value for value in figures.values() if isinstance(value, float)]
    assert numbers and all(math.isfinite(value) for value in numbers)


def test_noise_of_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    with noise_of(99), drawing():
        torch.randn(7)
    assert torch.equal(torch.randn(3), expected)


# ---------------------------------------------------------------- collapse


def learner_with_prior(head: str, loc: float, scale: float) -> MetaLearner:
    """A learner with a head of scale 10, random prior means of sd `loc`, and prior sd `scale`."""
    learner: Any = Pair("mean_field", "gaussian", head).learner()
    with torch.no_grad():
        learner.model.head.scale.fill_(10.0)
        learner.model.prior_over_weights.loc.copy_(loc * torch.randn(learner.model.prior_over_weights.loc.shape))
        learner.model.prior_over_weights.log_scale.fill_(math.log(scale))
    return learner


@pytest.mark.parametrize(
    ("head", "loc", "scale", "collapsed"),
    [
        ("cosine", 1.0, 1e-6, True),
        ("linear", 1.0, 1e-6, True),
        ("cosine", 1.0, 1.0, False),
        ("linear", 1.0, 1.0, False),
        ("cosine", 0.0, 1e-6, False),  # only directions count: around 0 the tiniest spread is all of them
        ("linear", 0.0, 1e-3, True),  # w = 0 has no opinion, and no draw has one
    ],
)
def test_a_prior_is_collapsed_when_its_draws_predict_alike(
    head: str, loc: float, scale: float, collapsed: bool
) -> None:
    """One prior for all classes: its mean ties them, and a hair decides; that is no spread either."""
    figures = collapse_metrics(learner_with_prior(head, loc, scale), random_tasks(num_tasks=20).observed(), 20)
    assert figures["collapsed"] is collapsed
    assert figures["prior_sd"] == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("log_scale", "collapsed"), [(-12.0, True), (0.0, False)])
def test_a_prior_of_the_support_collapses_too(head: str, log_scale: float, collapsed: bool) -> None:
    learner: Any = MetaLearner.from_specification(Pair("mc", "conditional", head).specification())
    torch.nn.init.constant_(learner.model.prior_over_weights.encoder.log_scale_net[-1].bias, log_scale)
    figures = collapse_metrics(learner, random_tasks(num_tasks=20).observed(), 20)
    assert figures["collapsed"] is collapsed
    assert (figures["disagreement"] > 0.02) is not collapsed


def test_a_flat_prior_has_no_spread() -> None:
    learner, observed = Pair("proto", "flat").learner(), random_tasks().observed()
    assert prior_spread(learner, observed, 10) == {}
    figures = collapse_metrics(learner, observed, 10)
    assert set(figures.values()) == {None} and "collapsed" in figures


def test_collapse_figures_are_root_mean_squares() -> None:
    """relative_sd = rms sd / rms mean, over weights and tasks."""
    learner, observed = Pair("mc", "conditional").learner(), random_tasks().observed()
    spread, p = prior_spread(learner, observed, 10), learner.model.prior(observed)
    figures = summary(spread)
    sd, mean = p.stddev.square().mean().sqrt().item(), p.mean.square().mean().sqrt().item()
    assert figures["prior_sd"] == pytest.approx(sd)
    assert figures["relative_sd"] == pytest.approx(sd / mean)


def test_masked_queries_do_not_count_for_collapse() -> None:
    learner, observed = learner_with_prior("cosine", 1.0, 0.5), random_tasks().observed()
    observed.query_mask = torch.zeros_like(observed.query_mask)
    observed.query_mask[:, :2] = True
    fewer = Observed(
        support_x=observed.support_x,
        support_y=observed.support_y,
        query_x=observed.query_x[:, :2],
        num_classes=observed.num_classes,
    )
    spreads = []
    for data in (observed, fewer):
        torch.manual_seed(0)
        spreads.append(prior_spread(learner, data, 5))
    for name, value in spreads[1].items():
        torch.testing.assert_close(spreads[0][name], value, msg=name)


def test_the_logit_spread_of_a_linear_head_has_a_closed_form() -> None:
    """w ~ N(m, s^2): centred logits have variance scale^2 s^2 (|x|^2 + 1) (1 - 1/C)."""
    learner = learner_with_prior("linear", 1.0, 0.3)
    observed = random_tasks(num_tasks=10).observed()
    draws = 4000
    figures = collapse_metrics(learner, observed, draws)
    expected = 10 * 0.3 * math.sqrt(2 * (1 - 1 / observed.num_classes))
    assert figures["logit_sd"] == pytest.approx(expected, rel=0.03)
    assert isinstance(learner.model.prior(observed).base_dist, Normal)
