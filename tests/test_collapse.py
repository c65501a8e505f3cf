"""Collapse of priors under the Monte-Carlo objective and its metrics: signs of gradients, closed forms."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from pyro.distributions import Categorical, Delta, Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed
from pyro_metabayes.data.sources.linear_gaussian import LinearGaussian
from pyro_metabayes.data.sources.spinning_lines import SpinningLines
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.diagnostics.collapse import (
    HALF_OF_90,
    against_truth,
    collapse_metrics,
    posterior_spread,
    prior_spread,
)
from pyro_metabayes.diagnostics.collapse_metrics import ACTIVE_NATS, METRICS, summary
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.experiments.collapse.closed_forms import critical_samples, information
from pyro_metabayes.models import few_shot_classifier, gaussian_mean
from pyro_metabayes.models.heads import Linear
from pyro_metabayes.models.priors import Flat, Gaussian
from pyro_metabayes.objectives.monte_carlo import MonteCarlo
from tests.pairs import TARGETS, Pair, normal_with, random_regressions, random_tasks, stream_of

NOISE = 0.7


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


class FreeGuide(pyro_metabayes.Guide):
    """N(loc, exp(log_variance)) with free parameters for each weight of each task [T, *W]. The noise may be given."""

    def __init__(self, model: pyro_metabayes.Model, loc: Tensor, log_variance: Tensor) -> None:
        super().__init__(model)
        self.loc, self.log_variance = nn.Parameter(loc), nn.Parameter(log_variance)
        self.family: type[Normal] = Normal

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.family(self.loc, (0.5 * self.log_variance).exp()).to_event(2)

    def slope(self, objective: MonteCarlo, episodes: Episodes, noise: Tensor | None = None) -> Tensor:
        """The gradient of the loss in the log variance of each weight of each task."""
        self.family = Normal if noise is None else normal_with(noise)
        self.zero_grad()
        objective.differentiable_loss(self.model, self, episodes).backward()
        assert self.log_variance.grad is not None
        return self.log_variance.grad.clone()


# ---------------------------------------------------------------- where the objective points


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_one_sample_shrinks_every_variance_of_a_gaussian_mean(seed: int, joint: bool) -> None:
    """E[d loss / d log s^2] = M s^2 / (2 noise^2) > 0, whatever the labels, the mean and s: a point is best.

    The expectation is that of two nodes, exact for a quadratic; with M of the points that are not masked.
    """
    torch.manual_seed(seed)
    episodes = random_regressions(num_tasks=5, features=1, seed=seed)
    model = gaussian_mean.Model(Gaussian(1), TARGETS, 1, NOISE)
    guide = FreeGuide(model, torch.randn(5, TARGETS, 1), torch.randn(5, TARGETS, 1))
    objective = MonteCarlo(1, joint)
    slope = sum(guide.slope(objective, episodes, sign * torch.ones(1)) for sign in (-1, 1)) / 2
    counts = episodes.query_mask.sum(-1).view(-1, 1, 1)
    expected = counts * guide.log_variance.detach().exp() / (2 * NOISE**2)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)
    assert (slope > 0).all()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_one_sample_shrinks_every_variance_of_a_linear_softmax(seed: int, joint: bool) -> None:
    """-log softmax is convex in the weights, so by Price's theorem E[d loss / d s^2] = E[d^2 loss / d w^2] / 2 > 0.

    Over 4,000 antithetic pairs, every weight's mean by 4 standard errors at least.
    """
    torch.manual_seed(seed)
    pairs, one = 4000, random_tasks(num_tasks=1, query=3, features=2, seed=seed)
    episodes = one.tasks(torch.zeros(2 * pairs, dtype=torch.long))
    model = few_shot_classifier.Model(Linear(scale=1.0), Gaussian(3))
    shape = model.event_shape(episodes)
    loc, log_variance = (torch.randn(1, *shape).repeat(2 * pairs, 1, 1) for _ in range(2))
    noise = torch.randn(pairs, *shape)
    slope = FreeGuide(model, loc, log_variance).slope(MonteCarlo(1, joint), episodes, torch.cat((noise, -noise)))
    of_pairs = (slope[:pairs] + slope[pairs:]) / 2
    error = of_pairs.std(0) / math.sqrt(pairs)
    assert (of_pairs.mean(0) > 4 * error).all()


@pytest.mark.parametrize(
    ("joint", "particles", "grows"),
    [(False, 1, False), (True, 1, False), (False, 4, False), (False, 20, True), (True, 2, True), (True, 10, True)],
)
def test_samples_beyond_the_critical_number_let_a_small_variance_grow(joint: bool, particles: int, grows: bool) -> None:
    """Tasks from the model itself, loc at their mean, s^2 a hundredth of the true v: below L_crit it shrinks.

    L_crit = 1 + noise^2 / (M_eff v), M_eff = M jointly and 1 for each point: 1.4 and 7 here. By 5 standard errors.
    """
    pairs, num_queries, shot = 8000, 15, 5  # pairs of opposite noise, which cancels what is odd in it
    settings = {"data": {"scale": 1.0, "noise": 1.0}, "task": {"shot": shot, "query": num_queries}}
    critical = critical_samples({"config": settings}, joint)
    assert critical == pytest.approx(1.4 if joint else 7.0) and (particles > critical) == grows
    true = 1 / 6  # variance after 5 points of support
    w = math.sqrt(true) * torch.randn(pairs, 1, 1)
    x = torch.ones(2 * pairs, num_queries, 1)
    y = (w + torch.randn(pairs, num_queries, 1)).repeat(2, 1, 1)
    episodes = Episodes(support_x=x[:, :0], support_y=x[:, :0], query_x=x, query_y=y)
    log_variance = torch.full((2 * pairs, 1, 1), math.log(0.01 * true))
    guide = FreeGuide(gaussian_mean.Model(Gaussian(1), 1, 1, 1.0), torch.zeros_like(log_variance), log_variance)
    noise = torch.randn(particles, pairs, 1, 1).squeeze(0)  # one particle has no axis of its own
    slope = guide.slope(MonteCarlo(particles, joint), episodes, torch.cat((noise, -noise), -3))
    of_pairs = (slope[:pairs] + slope[pairs:]).flatten() / 2
    error = of_pairs.std() / math.sqrt(pairs)
    assert (-of_pairs if grows else of_pairs).mean() > 5 * error


def test_the_objective_is_at_rest_at_the_truth() -> None:
    """Jointly, with L to infinity the loss is -log of the marginal likelihood, whose slope at the true s^2 is 0.

    With L = 3 it is not: the check above is of a place, and not of the sign alone. 4 and 5 standard errors.
    """
    w = torch.randn(4000, 1, 1)
    x = torch.ones(4000, 2, 1)
    episodes = Episodes(support_x=x[:, :0], support_y=x[:, :0], query_x=x, query_y=w + torch.randn_like(x))
    guide = FreeGuide(gaussian_mean.Model(Gaussian(1), 1, 1, 1.0), torch.zeros_like(w), torch.zeros_like(w))
    z = []
    for particles in (400, 3):
        slope = guide.slope(MonteCarlo(particles, joint=True), episodes).flatten()
        z.append((slope.mean() / slope.std() * math.sqrt(len(slope))).item())
    assert abs(z[0]) < 4 and z[1] > 5


# ---------------------------------------------------------------- the figures: prior


def regression_with_prior(scale: float, loc: float = 5.0) -> MetaLearner:
    """A learner of a Gaussian mean with prior N(loc, scale^2) and q = N(loc + 0.1, scale^2)."""
    learner: Any = Pair("mean_field", model="gaussian_mean").learner()
    with torch.no_grad():
        learner.model.prior_over_weights.loc.fill_(loc)
        learner.model.prior_over_weights.log_scale.fill_(math.log(scale))
        learner.guide.loc.fill_(loc + 0.1)
        learner.guide.log_scale.fill_(math.log(scale))
    return learner


@pytest.mark.parametrize(("scale", "collapsed"), [(1e-3, True), (0.05, True), (0.3, False), (1.0, False)])
def test_the_spread_of_a_regression_is_in_units_of_the_noise(scale: float, collapsed: bool) -> None:
    """logit_sd = s / noise; information 1/2 log(1 + s^2 / noise^2) per number; no decisions to disagree about."""
    learner, episodes = regression_with_prior(scale), random_regressions(num_tasks=8, features=1)
    figures = collapse_metrics(learner, episodes, 2000)
    assert figures["logit_sd"] == pytest.approx(scale / NOISE, rel=0.05)
    assert figures["collapsed"] is collapsed and figures["disagreement"] is None
    numbers = episodes.query_mask.sum(-1).double().mean().item() * episodes.query_y.shape[-1]
    expected = numbers * 0.5 * math.log1p((scale / NOISE) ** 2)
    assert figures["prior_information"] == pytest.approx(expected, rel=0.1)
    assert abs(figures["prior_information"] - expected) < 4 * figures["prior_information_monte_carlo_error"]
    assert figures["prior_sd"] == pytest.approx(scale) and figures["posterior_sd"] == pytest.approx(scale)
    assert figures["relative_sd"] == pytest.approx(scale / 5.0)


def test_entropies_are_differential_and_add_up_over_weights() -> None:
    """log s + log(2 pi e) / 2 for each of Y weights."""
    figures = collapse_metrics(regression_with_prior(0.3), random_regressions(features=1), 5)
    expected = TARGETS * (math.log(0.3) + 0.5 * math.log(2 * math.pi * math.e))
    assert figures["prior_entropy"] == pytest.approx(expected)
    assert figures["posterior_entropy"] == pytest.approx(expected)


def test_spread_ignores_masked_queries_of_a_regression() -> None:
    """Of inputs a hundred times as long, which would be a hundred times the spread."""
    learner: Any = Pair("mean_field", model="linear_regression").learner()
    data = random_regressions().observed()
    loud = random_regressions().observed()
    loud.query_x = torch.where(data.query_mask.unsqueeze(-1), data.query_x, 100 * data.query_x)
    assert not data.query_mask.all()
    spreads = []
    for observed in (data, loud):
        torch.manual_seed(0)
        spreads.append(prior_spread(learner, observed, 50)["logit_variance"])
    torch.testing.assert_close(*spreads)


# ---------------------------------------------------------------- the figures: posterior


def test_a_weight_is_active_where_its_kl_is_more_than_a_hundredth() -> None:
    """q is the prior but for three weights: KL = 0, 0.5 (shift by s), below and just above the threshold."""
    learner: Any = Pair("mean_field").learner()
    prior = learner.model.prior_over_weights
    shift = torch.zeros_like(learner.guide.loc)
    shift[0, 0], shift[1, 2], shift[2, 1] = 1.0, math.sqrt(2 * 0.9 * ACTIVE_NATS), math.sqrt(2 * 1.1 * ACTIVE_NATS)
    with torch.no_grad():
        learner.guide.loc.copy_(prior.loc + shift * prior.log_scale.exp())
        learner.guide.log_scale.copy_(prior.log_scale.expand_as(shift))
    figures = collapse_metrics(learner, random_tasks(), 5)
    assert figures["active_dimensions"] == 2
    assert figures["kl"] == pytest.approx(0.5 + 2 * ACTIVE_NATS)


@pytest.mark.parametrize(
    "pair", [Pair("savi", "conditional"), Pair("savi", "count_aware", model="linear_regression")], ids=str
)
def test_kl_and_elbo_of_a_batch_are_those_of_the_objective(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    torch.manual_seed(3)
    spread = posterior_spread(learner, episodes, learner.guide.training_posterior(episodes))
    q, p = learner.guide.training_posterior(episodes), learner.model.prior(episodes)
    torch.testing.assert_close(spread["kl"], kl_divergence(q, p))
    torch.testing.assert_close(spread["kl_by_dimension"].sum(-1), kl_divergence(q, p))
    torch.manual_seed(3)
    terms = type(learner.objective)(1, "analytic").terms(learner.model, learner.guide, episodes)
    assert summary(spread)["elbo"] == pytest.approx(-terms.loss.item() / episodes.num_tasks)


def without_numbers(figures: dict[str, Any]) -> set[str]:
    assert figures.keys() == set(METRICS)
    return {name for name, value in figures.items() if value is None}


OF_PRIOR = {"prior_sd", "relative_sd", "prior_entropy", "logit_sd", "disagreement", "collapsed"}
OF_PRIOR |= {"prior_information", "prior_information_monte_carlo_error"}
OF_BOUND = {"elbo", "kl", "active_dimensions"}
OF_MIXTURE = {"kl_variational_bound", "kl_convexity_bound"}  # bounds on the KL to a prior that is one
OF_POSTERIOR = {"posterior_sd", "posterior_entropy", "posterior_logit_sd", "posterior_disagreement"}
OF_POSTERIOR |= {"posterior_information", "posterior_information_monte_carlo_error", "posterior_collapsed"}
OF_CLASSES = {"disagreement", "posterior_disagreement"}
ERRORS = {"kl_monte_carlo_error", "prior_sd_monte_carlo_error", "posterior_sd_monte_carlo_error"}  # of what is sampled
OF_TRUTH = {"sd_ratio", "training_sd_ratio", "coverage90_of_truth", "kl_from_truth", "kl_to_truth"}
BY_SITE = {"kl_by_site", "posterior_sd_by_site"}  # of several sites


@pytest.mark.parametrize(
    ("pair", "nulls"),
    [
        (Pair("proto", "flat"), OF_PRIOR | OF_BOUND | OF_POSTERIOR),
        (Pair("proto", "gaussian"), OF_BOUND | OF_POSTERIOR),
        (Pair("mean_field", "flat"), OF_PRIOR | OF_BOUND),
        (Pair("mean_field", "mixture"), {"prior_entropy", "active_dimensions"}),  # no entropy, no KL of a weight
        (Pair("mean_field", "gaussian"), set()),
        (Pair("mean_field", "mixture", model="gaussian_mean"), {"prior_entropy", "active_dimensions"} | OF_CLASSES),
        (Pair("exact", model="gaussian_mean"), OF_CLASSES),
        (Pair("exact", model="linear_regression"), {"active_dimensions"} | OF_CLASSES),  # q is not diagonal
        (Pair("mean_field", "flat", model="linear_regression"), OF_PRIOR | OF_BOUND | OF_CLASSES),
    ],
    ids=lambda its: str(its) if isinstance(its, Pair) else "",
)
def test_what_does_not_exist_is_null(pair: Pair, nulls: set[str]) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    nulls = nulls | ERRORS | BY_SITE | (set() if pair.prior == "mixture" else OF_MIXTURE)
    nulls -= {"kl_monte_carlo_error"} if pair.prior == "mixture" else set()
    assert without_numbers(collapse_metrics(learner, episodes, 5)) == nulls | OF_TRUTH
    of_evaluation = evaluate(learner, stream_of(episodes), EvalSettings(3, samples=5), seed=0, progress=False).metrics
    assert without_numbers({name: of_evaluation[name] for name in METRICS}) == nulls | OF_TRUTH


def test_nothing_known_is_all_null() -> None:
    assert without_numbers(summary({})) == set(METRICS)


# ---------------------------------------------------------------- the figures: against a known truth


def test_coverage_and_divergences_are_their_closed_forms() -> None:
    """Two tasks of two weights, diagonal Gaussians: one number at a time."""
    fit_loc, fit_sd = torch.tensor([[0.3, -1.0], [0.0, 0.5]]), torch.tensor([[0.5, 2.0], [1.0, 0.1]])
    loc, sd = torch.tensor([[0.0, -0.5], [0.2, 0.5]]), torch.tensor([[1.0, 1.5], [1.0, 0.2]])
    spread = against_truth(Normal(fit_loc, fit_sd).to_event(1), Normal(loc, sd).to_event(1))

    def cumulative(z: float) -> float:
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    def kl(loc_q: float, sd_q: float, loc_p: float, sd_p: float) -> float:
        return math.log(sd_p / sd_q) + (sd_q**2 + (loc_q - loc_p) ** 2) / (2 * sd_p**2) - 0.5

    for task in range(2):
        each = [tuple(value[task, i].item() for value in (fit_loc, fit_sd, loc, sd)) for i in range(2)]
        inside = [
            cumulative((m + HALF_OF_90 * s - m0) / s0) - cumulative((m - HALF_OF_90 * s - m0) / s0)
            for m, s, m0, s0 in each
        ]
        assert spread["coverage90_of_truth"][task].item() == pytest.approx(sum(inside) / 2, abs=1e-12)
        from_truth = sum(kl(m0, s0, m, s) for m, s, m0, s0 in each)
        to_truth = sum(kl(m, s, m0, s0) for m, s, m0, s0 in each)
        assert spread["kl_from_truth"][task].item() == pytest.approx(from_truth)
        assert spread["kl_to_truth"][task].item() == pytest.approx(to_truth)
    figures = summary(spread)
    assert figures["sd_ratio"] == pytest.approx(math.sqrt(fit_sd.square().mean() / sd.square().mean()))


def test_a_point_is_not_held_against_the_truth() -> None:
    assert against_truth(Delta(torch.zeros(2, 1, 1), event_dim=2), Normal(torch.zeros(2, 1, 1), 1.0).to_event(2)) == {}


@pytest.mark.parametrize(("scale", "loc"), [(1.3, 0.4), (2.6, 0.4)])
@pytest.mark.parametrize("model", ["gaussian_mean", "linear_regression"])
def test_the_exact_guide_is_the_truth_under_the_true_prior(model: str, scale: float, loc: float) -> None:
    """Ratio 1, coverage 0.9, KL 0, and null where it has to be; under twice the true spread none of these."""
    features = 1 if model == "gaussian_mean" else 3
    source = LinearGaussian(features, TARGETS, loc=0.4, scale=1.3, noise=NOISE, constant=model == "gaussian_mean")
    learner: Any = Pair("exact", model=model, observe="all").learner()
    with torch.no_grad():
        learner.model.prior_over_weights.loc.fill_(loc)
        learner.model.prior_over_weights.log_scale.fill_(math.log(scale))
    stream = TaskStream(source.sampler("test", TaskShape(1, 3, 4)), 0, "test")
    evaluation = evaluate(learner, stream, EvalSettings(40, samples=400), seed=0, progress=False, truth=source)
    figures, right = evaluation.metrics, scale == 1.3
    for name, value in (("sd_ratio", 1.0), ("training_sd_ratio", 1.0), ("coverage90_of_truth", 0.9)):
        assert (figures[name] == pytest.approx(value, abs=1e-6)) == right, name
    for name in ("kl_from_truth", "kl_to_truth"):
        assert (figures[name] == pytest.approx(0, abs=1e-9)) == right, name
    tasks = stream.batch(0, 40)
    error = tasks.query_y - learner.model.outputs(source.truth(tasks.observed()).mean, tasks.query_x)
    torch.testing.assert_close(torch.from_numpy(evaluation.per_task["oracle_mse"]), error.square().mean((1, 2)))
    if right:  # 400 draws of w for the mean, none for the oracle's
        assert figures["mse"] == pytest.approx(figures["oracle_mse"], rel=0.02)


def test_the_true_posterior_of_spinning_lines_takes_their_information() -> None:
    """E KL(p(w | x), p(w)) = I(w; x) = 0.7085 nats at 32 points: the goal that the picture draws."""
    source = SpinningLines()
    goal = information({}, 32)
    assert goal == pytest.approx(0.5 * math.log(1 + 1 / (32 * 0.01))) == pytest.approx(0.7085, abs=1e-4)
    tasks = TaskStream(source.sampler("test", TaskShape(1, 0, 32)), 0, "test").batch(0, 4096).observed()
    marginal = Normal(torch.full((4096, 1, 1), 1.0), math.sqrt(1 / 32 + 0.01)).to_event(2)
    kl = kl_divergence(source.truth(tasks), marginal)
    assert kl.mean().item() == pytest.approx(goal, abs=5 * kl.std().item() / 64)


# ---------------------------------------------------------------- what drawing w is worth


def scores(probabilities: list[list[float]]) -> dict[str, float]:
    """Scores of one query with label 0, from probabilities p(y | w_l) for each draw."""
    log_probs = torch.tensor(probabilities).log().view(len(probabilities), 1, 1, -1)
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    return {name: value.item() for name, value in scores_of(Categorical(logits=log_probs), labels, mask).items()}


def test_mutual_information_is_what_a_draw_would_tell() -> None:
    """Draws that agree tell nothing; (0.9, 0.1) and (0.1, 0.9): log 2 - H(0.9); certain and opposed: log 2."""
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert scores([[0.7, 0.3]])["mutual_information"] == 0
    assert scores([[0.7, 0.3]] * 2)["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert scores([[0.9, 0.1], [0.1, 0.9]])["mutual_information"] == pytest.approx(math.log(2) - entropy)
    assert scores([[1.0, 0.0], [0.0, 1.0]])["mutual_information"] == pytest.approx(math.log(2))


def test_one_draw_may_be_less_accurate_than_all() -> None:
    of_three = scores([[0.6, 0.4], [0.9, 0.1], [0.4, 0.6]])
    assert of_three["accuracy"] == 1 and of_three["accuracy_of_sample"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("pair", [Pair("savi", "conditional"), Pair("proto", "flat")], ids=str)
def test_the_accuracy_of_mean_weights_is_that_of_their_logits(pair: Pair) -> None:
    learner, episodes = pair.learner(), random_tasks(num_tasks=40)
    got = evaluate(learner, stream_of(episodes), EvalSettings(40, samples=7), seed=0, progress=False)
    with torch.no_grad():
        mean = learner.guide.posterior(episodes.observed()).mean
        hits = learner.model.outputs(mean, episodes.query_x).argmax(-1) == episodes.query_y
    expected = hits.double().mean(-1)
    torch.testing.assert_close(torch.from_numpy(got.per_task["accuracy_of_mean"]), expected)
    assert got.metrics["accuracy_of_mean"] == pytest.approx(expected.mean().item())
    is_point = pair.guide == "proto"
    one, all_ = got.per_task["accuracy_of_sample"], got.per_task["accuracy"]
    assert (one == all_).all() == is_point
    assert (got.metrics["mutual_information"] < 1e-12) == is_point


def test_signs_average_quadratics_exactly() -> None:
    """The quadrature of these tests: E[w^2] = loc^2 + scale^2, from both signs once."""
    noise = torch.tensor(list(product((-1.0, 1.0), repeat=1)))
    w = normal_with(noise)(torch.tensor([0.7]), torch.tensor([0.3])).expand((2, 1)).rsample()
    assert w.square().mean().item() == pytest.approx(0.7**2 + 0.3**2)


def test_a_flat_prior_leaves_the_objective_of_a_free_guide_alone() -> None:
    """Monte Carlo reads no prior: the slope above is of the likelihood alone."""
    episodes = random_regressions(features=1)
    slopes = []
    for prior in (Flat(), Gaussian(1, scale=0.01)):
        guide = FreeGuide(
            gaussian_mean.Model(prior, TARGETS, 1, NOISE), torch.zeros(3, TARGETS, 1), torch.zeros(3, TARGETS, 1)
        )
        slopes.append(guide.slope(MonteCarlo(1), episodes, torch.ones(1)))
    torch.testing.assert_close(*slopes)
