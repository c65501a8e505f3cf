"""Calibration metrics for known truths, and simulation-based calibration of right and wrong posteriors."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError
from pyro_metabayes.data.sources.linear_gaussian import LinearGaussian
from pyro_metabayes.diagnostics import calibration as its
from pyro_metabayes.diagnostics.sbc import SIMULATIONS, Ranks, sbc_ranks, uniformity
from pyro_metabayes.evaluation.evaluate import evaluate
from pyro_metabayes.evaluation.scores import calibration_error, confidence_and_hits
from pyro_metabayes.likelihoods.numbers import RealPredictions
from tests.commands import call, ran
from tests.pairs import REGRESSIONS, Pair, random_regressions, random_tasks


def softmaxes(num_tasks: int, queries: int, classes: int, sharp: float = 1.0) -> tuple[Tensor, Tensor]:
    """Probabilities, and labels drawn from them. They are calibrated for sharp = 1, and overconfident for sharp > 1."""
    logits = 1.5 * torch.randn(num_tasks, queries, classes)
    labels = torch.distributions.Categorical(logits=logits).sample()
    return (sharp * logits).softmax(-1), labels


# ---------------------------------------------------------------- reliability


def test_ece_is_that_of_all_queries_together() -> None:
    probabilities, labels = softmaxes(30, 20, 4, sharp=2.0)
    mask = torch.rand(labels.shape) < 0.8
    found = its.reliability(its.bin_sums(probabilities, labels, mask))
    expected = calibration_error(*confidence_and_hits(probabilities[mask], labels[mask]))
    assert found.ece.mean.item() == pytest.approx(expected, abs=1e-6)
    assert found.share.sum().item() == pytest.approx(1)


def test_too_sure_lies_below_the_diagonal() -> None:
    for sharp, sign in ((1.0, 0), (3.0, -1), (0.4, 1)):
        probabilities, labels = softmaxes(2000, 10, 4, sharp)
        found = its.reliability(its.bin_sums(probabilities, labels, torch.ones_like(labels, dtype=torch.bool)))
        gap = ((found.accuracy.mean - found.confidence) * found.share).nansum().item()
        assert (abs(gap) < 0.012) if sign == 0 else (sign * gap > 0.05)
        assert (found.ece.mean.item() < 0.02) == (sign == 0)


def test_the_interval_is_that_of_repetitions() -> None:
    """Tasks whose queries are all right or all wrong: an interval over queries would be a quarter of it."""
    confidence = torch.full((200, 16, 2), 0.2)
    confidence[..., 0] = 0.8

    def sums() -> Tensor:
        labels = (torch.rand(200, 1) < 0.4).long().expand(-1, 16)
        return its.bin_sums(confidence, labels, torch.ones_like(labels, dtype=torch.bool))

    spread = torch.stack([its.reliability(sums()).ece.mean for _ in range(60)]).std().item()
    assert its.reliability(sums()).ece.ci95.item() == pytest.approx(1.96 * spread, rel=0.4)


# ---------------------------------------------------------------- coverage


def test_a_prediction_set_is_the_smallest_that_reaches_its_level() -> None:
    probabilities = torch.tensor([[[0.15, 0.6, 0.25]]])
    for label, inside in ((1, (True, True)), (2, (False, True)), (0, (False, False))):
        found = its.prediction_sets(probabilities, torch.tensor([[label]]), torch.tensor([[True]]))
        half, eight = its.LEVELS.index(0.5), its.LEVELS.index(0.8)
        assert found["coverage"][0, [half, eight]].tolist() == list(inside)
        assert found["size"][0, [half, eight]].tolist() == [1, 2]
        assert found["mass"][0, [half, eight]].tolist() == pytest.approx([0.6, 0.85])


def test_sets_of_a_calibrated_predictive_hold_what_they_say() -> None:
    probabilities, labels = softmaxes(400, 20, 5)
    found = its.prediction_sets(probabilities, labels, torch.ones_like(labels, dtype=torch.bool))
    difference = its.Estimate.over_tasks(found["coverage"] - found["mass"])
    assert (difference.mean.abs() < 2 * difference.ci95 + 1e-3).all()
    assert (found["mass"] >= torch.tensor(its.LEVELS) - 1e-5).all()
    too_sure, _ = probabilities.pow(3), labels
    sharpened = its.prediction_sets(too_sure / too_sure.sum(-1, keepdim=True), labels, torch.ones_like(labels).bool())
    assert sharpened["coverage"].mean(0)[-3] < 0.85 < found["coverage"].mean(0)[-3]


def test_intervals_of_the_truth_cover_as_often_as_they_say() -> None:
    likelihood = Normal(torch.randn(300, 1, 1, 1), 0.5).expand((300, 500, 10, 1))  # N(0, 1 + 1/4)
    y = 1.25**0.5 * torch.randn(500, 10, 1)
    bounds = RealPredictions(y, torch.ones(500, 10, dtype=torch.bool), likelihood).pit_bounds
    found = its.interval_coverage(bounds, torch.ones(500, 10, dtype=torch.bool))["coverage"].mean(0)
    torch.testing.assert_close(found, torch.tensor(its.LEVELS), atol=0.06, rtol=0)


# ---------------------------------------------------------------- unseen classes


def test_auroc_counts_pairs() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 3.0, 9.0]])
    negative = torch.tensor([[True, True, False, False, False]])
    positive = torch.tensor([[False, False, True, True, False]])
    assert its.auroc(scores, negative, positive).item() == (1 + 0.5 + 1 + 1) / 4


@pytest.mark.parametrize("pair", [Pair("sib"), Pair("savi", "conditional"), Pair("proto", "flat")], ids=str)
def test_no_posterior_sees_the_other_classes(pair: Pair) -> None:
    """The predictive of the known queries is that of tasks that never had the others."""
    learner, episodes = pair.learner(), random_tasks(way=5, query=4)
    observed, unseen = its.without_classes(episodes, 3)
    assert unseen.sum(1).tolist() == [8, 8, 8] and not (unseen & observed.query_mask).any()
    moved = replace(episodes, support_x=torch.where((episodes.support_y >= 3).unsqueeze(-1), 7.0, episodes.support_x))
    moved.query_x = torch.where(unseen.unsqueeze(-1), -3.0, episodes.query_x)
    one, other = (learner.guide.posterior(each) for each in (observed, its.without_classes(moved, 3)[0]))
    torch.testing.assert_close(one.mean, other.mean)


def test_entropy_tells_classes_apart_that_are_far_from_all_others() -> None:
    """Unseen queries are moved half-way between the classes that are known, or onto them."""
    learner, episodes = Pair("proto", "flat", "linear").learner(), random_tasks(40, way=4, query=6)
    means = torch.stack([episodes.support_x[t][episodes.support_y[t] < 3].mean(0) for t in range(40)])
    unseen = (episodes.query_y == 3).unsqueeze(-1)
    episodes.query_x = torch.where(unseen, means.unsqueeze(1), episodes.query_x)
    found = its.unseen_classes(learner, [episodes], 3, 1)
    assert found["auroc"].mean() > 0.9 and (found["unseen"] > found["known"]).float().mean() > 0.9
    same = replace(episodes, query_x=episodes.support_x[:, :1].expand_as(episodes.query_x))
    assert its.unseen_classes(learner, [same], 3, 1)["auroc"].mean().item() == 0.5


# ---------------------------------------------------------------- simulation-based calibration


class Rescaled(pyro_metabayes.Guide):
    """The exact posterior with its sd times a factor, and its mean shifted by sds. For factor=None the prior."""

    def __init__(self, model: Any, factor: float | None = 1.0, shift: float = 0.0) -> None:
        super().__init__(model)
        self.factor, self.shift = factor, shift

    def posterior(self, observed: Observed) -> TorchDistribution:
        model: Any = self.model
        if self.factor is None:
            return model.prior(observed)
        exact = model.exact_posterior(observed)
        sd = exact.variance.sqrt()
        return Normal(exact.mean + self.shift * sd, self.factor * sd).to_event(2)


def conjugate(name: str = "gaussian_mean", observe: str = "query") -> MetaLearner:
    return Pair("exact", model=name, observe=observe).learner()


def tasks(num_tasks: int, name: str = "gaussian_mean") -> Episodes:
    return random_regressions(num_tasks, features=REGRESSIONS[name])


def planted(factor: float | None, shift: float = 0.0) -> MetaLearner:
    learner: Any = conjugate()
    learner.guide = Rescaled(learner.model, factor, shift)
    return learner


@pytest.mark.parametrize("observe", ["query", "all"])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_the_exact_posterior_passes(name: str, observe: str) -> None:
    for training in (False, True):
        found = uniformity(sbc_ranks(conjugate(name, observe), tasks(400, name), 63, training))
        assert not found.flagged, found.p_values


def test_the_exact_posterior_passes_as_often_as_is_stated() -> None:
    """80 simulations of 50 tasks each, one scalar of each: 5% of them flagged, Bin(80, 0.05) <= 11 in 99.9%."""
    ranks = sbc_ranks(conjugate(), tasks(80 * 50), 31)
    each = Ranks(["w"] * 80, ranks.values[0].view(80, 50), 31)
    flagged = int((uniformity(each).p_values < 0.05).sum())
    assert flagged <= 11
    wrong = sbc_ranks(planted(0.5), tasks(80 * 50), 31)
    assert (uniformity(Ranks(each.names, wrong.values[0].view(80, 50), 31)).p_values < 0.05).sum() > 40


@pytest.mark.parametrize(("factor", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.4)])
def test_a_posterior_that_is_too_sure_or_too_wide_or_moved_is_flagged(factor: float, shift: float) -> None:
    ranks = sbc_ranks(planted(factor, shift), tasks(600))
    found = uniformity(ranks)
    assert found.flagged
    if factor < 1:  # too many ranks at both ends
        ends = ((ranks.values[0] < 10) | (ranks.values[0] >= 90)).float().mean().item()
        assert ends > 0.25


def test_a_posterior_that_ignores_its_labels_is_found_by_the_likelihood_alone() -> None:
    """Ranks of the weights under the prior are uniform, which is why they are not all that is asked."""
    ranks = sbc_ranks(planted(None), tasks(600))
    found = uniformity(ranks)
    assert found.flagged and ranks.names[-1] == "log likelihood"
    assert (found.p_values[:-1] > 0.01).all() and found.p_values[-1] < 0.001


def test_against_the_truth_a_learned_prior_may_be_wrong() -> None:
    """The exact posterior under a prior of a third of the true spread is calibrated for its own tasks alone."""
    source, learner = LinearGaussian(1, 2, scale=1.5, noise=0.7, constant=True), conjugate()
    prior: Any = learner.model.prior_over_weights
    with torch.no_grad():
        prior.loc.zero_()
        prior.log_scale.fill_(torch.tensor(0.5).log())
    episodes = tasks(500)
    assert not uniformity(sbc_ranks(learner, episodes)).flagged
    assert uniformity(sbc_ranks(learner, episodes, truth=source)).flagged
    with torch.no_grad():
        prior.log_scale.fill_(torch.tensor(1.5).log())
    assert not uniformity(sbc_ranks(learner, episodes, truth=source)).flagged


def test_a_conditional_prior_keeps_its_support_set() -> None:
    """mc predicts with its prior, so that its posterior passes by itself; against the truth it does not."""
    pair = Pair("mc", "conditional", model="gaussian_mean", objective="monte_carlo")
    assert pair.learner().model.given_support and not conjugate().model.given_support
    ranks = sbc_ranks(pair.learner(), tasks(400))
    assert not uniformity(Ranks(ranks.names[:-1], ranks.values[:-1], ranks.num_draws)).flagged
    assert uniformity(sbc_ranks(pair.learner(), tasks(400), truth=LinearGaussian(1, 2, constant=True))).flagged


def test_a_truth_over_another_latent_is_not_compared() -> None:
    """The simulator knows the weights; the model has a scale too."""
    pair = Pair("task_scale", model="task_scale")
    learner, episodes, source = pair.learner(), pair.tasks(), LinearGaussian(3, 2)
    metrics = evaluate(learner, episodes, seed=0, progress=False, truth=source).metrics
    assert metrics["oracle_mse"] is None and metrics["coverage90_of_truth"] is None and metrics["mse"] > 0
    with pytest.raises(UsageError, match=r"with weights of shape \[\d+\], as in the model, got shape \[2, 3\]"):
        sbc_ranks(learner, episodes, truth=source)


def test_uniform_ranks_are_flagged_at_the_stated_rate() -> None:
    """4,000 sets of uniform ranks: the share outside the band is 5%, with a standard error of 0.34 points."""
    ranks = Ranks(["u"] * 4000, torch.randint(20, (4000, 100)), 19)
    found = uniformity(ranks)
    share = (found.p_values < 0.05).double().mean().item()
    assert share == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 4000) ** 0.5 + 2 / SIMULATIONS**0.5 * 0.22)
    outside = ((found.difference < found.lower - 1e-9) | (found.difference > found.upper + 1e-9)).any(1)
    assert outside.double().mean().item() == pytest.approx(share, abs=0.01)  # the band is that of the test


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            Pair("sib", settings={"posterior": "delta"}),
            "expected a posterior that can be sampled, got a point estimate",
        ),
        (Pair("sib", "flat"), "expected a prior that can be sampled, got a flat prior"),
    ],
    ids=str,
)
def test_what_has_no_ranks_is_refused(pair: Pair, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sbc_ranks(pair.learner(), pair.tasks())


# ---------------------------------------------------------------- the command


def test_the_command_of_classes(finished: Path) -> None:
    """The test split has the five classes of a task and no more: no unseen ones; two of three leave one."""
    few = ("tasks=4", "samples=3", "sbc_tasks=20", "draws=9")
    outcome = ran("calibration", str(finished), *few)
    assert "ECE, %" in outcome.out and "classes in 90% sets" in outcome.out and "SBC of the posterior" in outcome.out
    with (finished / "calibration/table.csv").open(newline="") as file:
        labels = [row["metric"] for row in csv.DictReader(file)]
    assert len(set(labels)) == len(labels)
    for name in ("table.md", "table.csv", "calibration.png", "sbc.png"):
        assert (finished / "calibration" / name).stat().st_size > 0


@pytest.mark.usefixtures("empty_folder")
def test_the_command_of_numbers_and_of_unseen_classes() -> None:
    small = ("train.steps=2", "eval.tasks=8", "train.validation_tasks=8")
    few = ("tasks=4", "samples=3", "sbc_tasks=20", "draws=9")
    ran("run", "data=linear_regression", "guide=exact", *small, "hydra.run.dir=numbers")
    out = ran("calibration", "run=numbers", *few).out
    assert "coverage of 90% intervals" in out and "SBC of the training posterior" in out and "ECE" not in out
    ran("run", "data=gaussian_features", "data.num_features=16", "guide=proto", *small, "hydra.run.dir=classes")
    out = ran("calibration", "run=classes", *few).out
    assert "AUROC of the entropy" in out and "SBC" not in out
    assert "prior=simulator" in call("calibration", "run=classes", *few, "prior=simulator").error
    assert "expected prior to be one of auto" in call("calibration", "run=classes", "prior=mine").error
    assert "sbc_tasks >= 0" in call("calibration", "run=classes", "draws=0").error
