"""Closed forms of conjugate models, compared with numerical integration, dense Gaussians and objectives."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from pyro.infer import RenyiELBO
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_metabayes
from pyro_metabayes import Episodes, Observed, UsageError
from pyro_metabayes.evaluation.score import Weights
from pyro_metabayes.evaluation.scores import SCORES, scores_of, values_of
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.evidence.joint import joint_predictive
from pyro_metabayes.guides.savi import Guide as SharedGuide
from pyro_metabayes.inference.divergences import closed_form_kl
from pyro_metabayes.likelihoods.numbers import RealPredictions
from pyro_metabayes.models import gaussian_mean, linear_regression
from pyro_metabayes.models.priors import Conditional, Gaussian
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.importance_weighted import ImportanceWeighted
from pyro_metabayes.objectives.monte_carlo import MonteCarlo
from pyro_metabayes.objectives.objective import Objective
from tests.pairs import GROUPED, REGRESSIONS, TARGETS, Pair, normal_with, random_regressions

OBSERVE = ("query", "support", "all")
LINEAR = REGRESSIONS | {"hierarchical_regression": GROUPED["hierarchical_regression"]}
every_model = pytest.mark.parametrize("name", REGRESSIONS)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def tasks_of(name: str, **shape: Any) -> Episodes:
    return random_regressions(features=REGRESSIONS[name], **shape)


def observed_points(episodes: Episodes, task: int, observe: str) -> tuple[Tensor, Tensor]:
    """The unmasked inputs and labels of one task that a model with this `observe` conditions on."""
    sets = {"query": ("query",), "support": ("support",), "all": ("support", "query")}[observe]
    x, y = (
        torch.cat([getattr(episodes, f"{of}_{what}")[task][getattr(episodes, f"{of}_mask")[task]] for of in sets])
        for what in ("x", "y")
    )
    return x, y


def dense_evidence(model: Any, episodes: Episodes, observe: str) -> Tensor:
    """The log evidence [T] of the observed labels, from one dense Gaussian per output and task."""
    prior = model.prior_over_weights
    loc, covariance = prior.loc.detach(), torch.diag(prior.log_scale.detach().exp().square())
    total = torch.zeros(episodes.num_tasks)
    for task in range(episodes.num_tasks):
        x, y = observed_points(episodes, task, observe)
        of_labels = MultivariateNormal(x @ loc, x @ covariance @ x.mT + model.noise**2 * torch.eye(len(x)))
        total[task] = sum(of_labels.log_prob(y[:, k]) for k in range(y.shape[1]))
    return total


# ---------------------------------------------------------------- the closed forms


@pytest.mark.parametrize("module", [gaussian_mean, linear_regression])
def test_posterior_and_evidence_are_those_of_numerical_integration(module: Any) -> None:
    """One weight: sums over a fine grid are exact to many digits for a smooth density."""
    model = module.Model(Gaussian(1, loc=0.4, scale=0.9), num_targets=1, num_features=1, noise=0.6)
    episodes = random_regressions(num_tasks=4, features=1, targets=1)
    if module is linear_regression:
        episodes.support_x, episodes.query_x = torch.randn_like(episodes.support_x), torch.randn_like(episodes.query_x)
    grid = torch.linspace(-8, 9, 40_001)
    prior = Normal(0.4, 0.9).log_prob(grid)
    posterior, evidence = model.exact_posterior(episodes.observed()), model.log_evidence(episodes)
    for task in range(episodes.num_tasks):
        joint, joint_of_all = (
            prior + Normal(x * grid, 0.6).log_prob(y).sum(0)
            for x, y in (observed_points(episodes, task, observe) for observe in ("support", "all"))
        )
        probability = joint.softmax(0)
        mean = (grid * probability).sum()
        variance = ((grid - mean).square() * probability).sum()
        assert posterior.mean[task].item() == pytest.approx(mean.item(), abs=1e-9)
        assert posterior.variance[task].item() == pytest.approx(variance.item(), abs=1e-9)
        expected = joint_of_all.logsumexp(0) - joint.logsumexp(0)
        assert evidence[task].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_mean_of_a_gaussian_is_regression_on_a_constant() -> None:
    """Two derivations of one posterior and one evidence, points masked as they come."""
    prior, episodes = Gaussian(1, loc=0.3, scale=1.2), random_regressions(num_tasks=5, features=1)
    assert not episodes.support_mask.all() and (episodes.query_x == 1).all()
    one, other = (module.Model(prior, TARGETS, 1, noise=0.8) for module in (gaussian_mean, linear_regression))
    for data in (episodes.observed(), episodes.pooled()):
        torch.testing.assert_close(one.exact_posterior(data).mean, other.exact_posterior(data).mean)
        torch.testing.assert_close(one.exact_posterior(data).variance, other.exact_posterior(data).variance)
    torch.testing.assert_close(one.log_evidence(episodes), other.log_evidence(episodes))
    w = torch.randn(4, 5, TARGETS, 1)
    torch.testing.assert_close(one.outputs(w, episodes.query_x), other.outputs(w, episodes.query_x))


@every_model
def test_the_evidence_is_that_of_a_dense_gaussian(name: str) -> None:
    """log p(Q | S) = log p(S, Q) - log p(S), and log p(Q) where there is no support."""
    model: Any = Pair("exact", model=name).learner().model
    episodes = tasks_of(name, num_tasks=4)
    expected = dense_evidence(model, episodes, "all") - dense_evidence(model, episodes, "support")
    torch.testing.assert_close(model.log_evidence(episodes).detach(), expected, rtol=0, atol=1e-10)
    alone = replace(episodes, support_mask=torch.zeros_like(episodes.support_mask))
    expected = dense_evidence(model, episodes, "query")
    torch.testing.assert_close(model.log_evidence(alone).detach(), expected, rtol=0, atol=1e-10)


def gaussians_over(shape: tuple[int, ...]) -> dict[str, TorchDistribution]:
    """Diagonal and full Gaussians over w of this shape [T, Y, D]."""
    generator = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(shape, generator=generator), 0.3 + torch.rand(shape, generator=generator)
    factor = torch.randn(*shape, shape[-1], generator=generator).tril(-1) + torch.diag_embed(scale)
    return {
        "diagonal": Normal(loc, scale).to_event(2),
        "full": MultivariateNormal(loc, scale_tril=factor).to_event(1),
        "full, by its precision": MultivariateNormal(loc, precision_matrix=factor @ factor.mT).to_event(1),
    }


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("family", ["diagonal", "full", "full, by its precision"])
def test_predictions_under_a_gaussian_are_those_of_many_draws(name: str, family: str) -> None:
    """Mean, sd, and every score: 40,000 draws come as near as they can."""
    model: Any = Pair("exact", model=name).learner().model
    episodes = random_regressions(features=LINEAR[name], num_tasks=4, targets=Pair("exact", model=name).targets)
    q = gaussians_over((4, *model.event_shape(episodes)))[family]
    w = q.sample(torch.Size((40_000,)))
    likelihood = model.likelihood(w, episodes.query_x, episodes)
    drawn = likelihood.sample()
    episodes = replace(episodes, query_y=drawn[0])  # draws do not find densities of labels far from all of them
    with torch.no_grad():
        exact = predictions_under(q, model, episodes, samples=1)
    assert isinstance(exact, RealPredictions) and len(exact.mean) == 1
    torch.testing.assert_close(exact.mean[0], drawn.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(exact.family.stddev[0], drawn.std(0), rtol=0.05, atol=0)
    many = scores_of(likelihood, episodes.query_y, episodes.query_mask)
    assert {"nll", "mse", "coverage90"} <= set(many)
    for name_of_score, values in values_of(exact, Weights.DRAWS, SCORES).items():
        if name_of_score in many:
            tolerance = 0.15 if name_of_score == "coverage90" else 0.05
            torch.testing.assert_close(values, many[name_of_score], rtol=0.05, atol=tolerance)


@every_model
def test_the_joint_density_is_that_of_a_dense_gaussian(name: str) -> None:
    model: Any = Pair("exact", model=name).learner().model
    episodes = tasks_of(name, num_tasks=4)
    for q in gaussians_over((4, *model.event_shape(episodes))).values():
        joint = joint_predictive(model, q, episodes, samples=200).value
        inner: Any = q.base_dist if isinstance(q.base_dist, MultivariateNormal) else None
        for task in range(4):
            x, y = observed_points(episodes, task, "query")
            total = torch.tensor(0.0)
            for k in range(y.shape[1]):
                of_row = inner.covariance_matrix[task, k] if inner else torch.diag(q.variance[task, k])
                covariance = x @ of_row @ x.mT + model.noise**2 * torch.eye(len(x))
                total = total + MultivariateNormal(x @ q.mean[task, k], covariance).log_prob(y[:, k])
            assert joint[task].item() == pytest.approx(total.item(), abs=1e-9)


def test_posteriors_that_have_diverged_score_badly_and_do_not_raise() -> None:
    model, episodes = linear_regression.Model(Gaussian(2), TARGETS, 2), random_regressions(num_tasks=3, features=2)
    with pyro.validation_enabled(False):  # as in an evaluation
        q = Normal(torch.full((3, TARGETS, 2), torch.nan), torch.full((3, TARGETS, 2), torch.nan)).to_event(2)
        predictions = predictions_under(q, model, episodes, samples=1)
        assert predictions.log_prob.isnan().all()
        assert joint_predictive(model, q, episodes, samples=200).value.isnan().all()


@every_model
def test_posteriors_may_be_taken_in_two_steps(name: str) -> None:
    """log p(w | S, Q) = log p(w | S) + log p(Q | w) - log p(Q | S) at any w."""
    model: Any = Pair("exact", model=name).learner().model
    episodes = tasks_of(name)
    w = torch.randn(7, episodes.num_tasks, *model.event_shape(episodes))
    likelihood = model.likelihood(w, episodes.query_x, episodes).mask(episodes.query_mask).to_event(1)
    in_two = model.exact_posterior(episodes.observed()).log_prob(w) + likelihood.log_prob(episodes.query_y)
    at_once = model.exact_posterior(episodes.pooled()).log_prob(w) + model.log_evidence(episodes)
    torch.testing.assert_close(in_two, at_once, rtol=0, atol=1e-9)


@every_model
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("conditional", "expected a prior that does not depend on the support set"),
        ("mixture", "expected a Gaussian prior for a closed form, got MixtureSameFamily"),
        ("flat", "expected a Gaussian prior for a closed form, got ImproperUniform"),
    ],
)
def test_what_has_no_closed_form_is_refused(name: str, prior: str, message: str) -> None:
    model: Any = Pair("exact", prior, model=name).learner().model
    with pytest.raises(UsageError, match=message):
        model.exact_posterior(tasks_of(name).observed())


def test_the_exact_posterior_of_a_classifier_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a model with an exact posterior for guide=exact"):
        Pair("exact").learner()


def test_the_pullback_is_that_of_autograd() -> None:
    for name, features in REGRESSIONS.items():
        model: Any = Pair("exact", model=name).learner().model
        episodes = tasks_of(name, whole=True)
        if name == "linear_regression":
            episodes.query_x = torch.randn_like(episodes.query_x)
        w = torch.randn(2, episodes.num_tasks, TARGETS, features, requires_grad=True)
        value = model.outputs(w, episodes.query_x)
        cotangent = torch.randn_like(value)
        (expected,) = torch.autograd.grad((value * cotangent).sum(), w)
        torch.testing.assert_close(model.outputs_and_pullback(w, episodes.query_x)[1](cotangent), expected)


# ---------------------------------------------------------------- the objectives


OBJECTIVES = [Elbo(1), Elbo(4), *(ImportanceWeighted(particles) for particles in (1, 3, 10))]


@every_model
@pytest.mark.parametrize("observe", OBSERVE)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda its: f"{its.name}-{its.particles}")
def test_every_sample_of_the_exact_posterior_gives_the_evidence(name: str, observe: str, objective: Objective) -> None:
    """Of whichever labels the model observes: the ratio p(y, w) / q(w) is p(y), whatever w."""
    learner = Pair("exact", model=name, observe=observe).learner()
    episodes = tasks_of(name)
    expected = dense_evidence(learner.model, episodes, observe).sum().item()
    for seed in range(4):
        torch.manual_seed(seed)
        terms = objective.terms(learner.model, learner.guide, episodes)
        assert -terms.loss.item() == pytest.approx(expected, abs=1e-8)


@every_model
@pytest.mark.parametrize(("observe", "inferred"), [(one, other) for one, other in product(OBSERVE, OBSERVE)])
def test_only_the_posterior_of_what_is_observed_gives_the_evidence(name: str, observe: str, inferred: str) -> None:
    """The check above can fail: a guide that looks at other labels than the model scatters."""
    learner = Pair("exact", model=name, observe=inferred).learner()
    episodes = tasks_of(name)
    q = learner.guide.training_posterior(episodes)
    learner.model.observe = observe
    guide = GivenPosterior(learner.model, q)
    losses = torch.stack([Elbo().differentiable_loss(learner.model, guide, episodes) for _ in range(4)])
    assert (losses.std() < 1e-8) == (observe == inferred)


class GivenPosterior(pyro_metabayes.Guide):
    """A guide that returns a given q, in training and at test."""

    def __init__(self, model: pyro_metabayes.Model, q: TorchDistribution) -> None:
        super().__init__(model)
        self.q = q

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.q


def every_sign(shape: tuple[int, int]) -> Tensor:
    """All combinations of D signs [2^D, 1, Y, D]. Rows share signs, since rows are separate in the likelihood."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=shape[1])))
    return signs.view(-1, 1, 1, shape[1]).expand(-1, 1, *shape)


@every_model
@pytest.mark.parametrize("observe", OBSERVE)
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.3, 1.0), (0.0, 2.0), (-0.5, 0.4)])
def test_the_gap_of_the_bound_is_the_kl_to_the_posterior(
    name: str, observe: str, kl: str, shift: float, factor: float
) -> None:
    """log p(y) - ELBO = KL(q, p(w | y)); without chance, since all inside the expectation is quadratic in w."""
    learner = Pair("exact", model=name, observe=observe).learner()
    model, episodes = learner.model, tasks_of(name)
    exact = learner.guide.training_posterior(episodes)
    noise = every_sign(tuple(model.event_shape(episodes)))
    q = normal_with(noise)(exact.mean + shift, factor * exact.stddev).to_event(2)
    covariance = torch.diag_embed(q.variance)
    gap = kl_divergence(
        MultivariateNormal(q.mean, covariance), MultivariateNormal(exact.mean, torch.linalg.inv(precision(exact)))
    ).sum()
    elbo = -Elbo(len(noise), kl).differentiable_loss(model, GivenPosterior(model, q), episodes)
    measured = dense_evidence(model, episodes, observe).sum() - elbo
    assert measured.item() == pytest.approx(gap.item(), abs=1e-9)
    if shift or factor != 1:
        assert gap > 0.1


def precision(exact: TorchDistribution) -> Tensor:
    """The precision matrices [T, Y, D, D] of a Gaussian."""
    base: Any = exact.base_dist
    return base.precision_matrix if isinstance(base, MultivariateNormal) else torch.diag_embed(1 / base.variance)


# ---------------------------------------------------------------- importance weighting

WEIGHTED = [
    Pair("savi", "conditional"),
    Pair("savi", "count_aware", settings={"shared": False}, model="linear_regression"),
    Pair("mean_field", "mixture", "linear"),
    Pair("mean_field", model="gaussian_mean", observe="all"),
    Pair("sib", settings={"num_steps": 2, "step_size": 0.1}),
]


@pytest.mark.parametrize("pair", WEIGHTED, ids=str)
@pytest.mark.parametrize("particles", [2, 6])
def test_importance_weighting_is_renyi_at_zero(pair: Pair, particles: int) -> None:
    """In value, and in the gradient of every parameter."""
    learner, episodes = pair.learner(), pair.tasks()
    renyi = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(4)
    expected = renyi.loss_and_grads(learner.model, learner.guide, episodes)
    gradients = {name: its.grad.clone() for name, its in learner.named_parameters() if its.grad is not None}
    learner.zero_grad()
    torch.manual_seed(4)
    loss = ImportanceWeighted(particles).differentiable_loss(learner.model, learner.guide, episodes)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name), rtol=1e-7, atol=1e-9, msg=name)


def test_masks_and_scales_of_plain_pyro_count() -> None:
    """What poutine.mask and poutine.scale put on an observed site means what it means to Pyro."""
    episodes, of_task = random_regressions(num_tasks=4, features=1, whole=True), torch.tensor([True, False, True, True])

    def model(data: Episodes) -> None:
        with pyro.plate("task", 4, dim=-1):
            w = pyro.sample("w", Normal(0.3, 1.0))
            with poutine.mask(mask=of_task), poutine.scale(scale=0.5):
                pyro.sample("y", Normal(w, 0.6), obs=data.query_y[:, 0, 0])

    def guide(data: Episodes) -> None:
        with pyro.plate("task", 4, dim=-1):
            pyro.sample("w", Normal(0.0, 1.2))

    renyi = RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(4)
    expected = renyi.loss(model, guide, episodes)
    torch.manual_seed(4)
    assert ImportanceWeighted(3).differentiable_loss(model, guide, episodes).item() == pytest.approx(expected)


class SumsTasksInTheLog(ImportanceWeighted):
    """A faulty objective, which averages the product over all tasks instead of each task."""

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        (data,) = args
        model_trace, guide_trace = self._traces(model, guide, data, data, **kwargs)
        for trace in (model_trace, guide_trace):
            trace.compute_log_prob()
        log_ratio = model_trace.nodes["w"]["log_prob"] - guide_trace.nodes["w"]["log_prob"]
        weights = log_ratio + model_trace.nodes["query_y"]["log_prob"]  # [L, T]
        loss = math.log(self.particles) - weights.sum(-1).logsumexp(0)
        return replace(super().terms(model, guide, *args, **kwargs), loss=loss)


def test_the_bound_is_taken_task_by_task() -> None:
    """A batch of tasks is the sum of its tasks, each averaged by itself; the planted sum in the log is not."""
    pair, particles = Pair("mean_field", model="linear_regression"), 5
    learner, episodes = pair.learner(), pair.tasks()
    noise = torch.randn(particles, episodes.num_tasks, *learner.model.event_shape(episodes))
    q = learner.guide.posterior(episodes)

    def loss_of(objective: Objective, tasks: slice) -> float:
        fixed = normal_with(noise[:, tasks])(q.mean[tasks], q.stddev[tasks]).to_event(2)
        guide = GivenPosterior(learner.model, fixed)
        return objective.differentiable_loss(learner.model, guide, episodes.tasks(tasks)).item()

    for objective, right in ((ImportanceWeighted(particles), True), (SumsTasksInTheLog(particles), False)):
        together = loss_of(objective, slice(None))
        apart = sum(loss_of(objective, slice(task, task + 1)) for task in range(episodes.num_tasks))
        assert (abs(together - apart) < 1e-9) == right, (together, apart)


@pytest.mark.parametrize("observe", ["query", "all"])
def test_importance_weighting_by_hand(observe: str) -> None:
    """One number at a time, points masked, and p(w) / q(w) tempered by the KL weight."""
    pair, particles, kl_weight = Pair("mean_field", model="gaussian_mean", observe=observe), 3, 0.5
    learner, episodes = pair.learner(), pair.tasks()
    q, prior = learner.guide.posterior(episodes), learner.model.prior(episodes)
    torch.manual_seed(6)
    w = q.expand((particles, episodes.num_tasks)).rsample()
    expected = 0.0
    for task in range(episodes.num_tasks):
        _, y = observed_points(episodes, task, observe)
        products = []
        for sample in range(particles):
            log_p, log_q = (density.base_dist.log_prob(w[sample])[task].sum() for density in (prior, q))
            log_likelihood = Normal(w[sample, task].squeeze(-1), 0.7).log_prob(y).sum()
            products.append((log_likelihood + kl_weight * (log_p - log_q)).exp().item())
        expected -= math.log(sum(products) / particles)
    torch.manual_seed(6)
    objective = ImportanceWeighted(particles)
    loss = objective.differentiable_loss(learner.model, learner.guide, episodes, kl_weight=kl_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "pair", [Pair("mc", "conditional"), Pair("mc", "count_aware", model="linear_regression")], ids=str
)
def test_with_the_prior_as_guide_it_is_joint_monte_carlo(pair: Pair) -> None:
    """The weights p / q are 1, in value and gradient."""
    learner, episodes = pair.learner(), pair.tasks()
    results = []
    for objective in (ImportanceWeighted(5), MonteCarlo(5, joint=True)):
        torch.manual_seed(4)
        learner.zero_grad()
        loss = objective.differentiable_loss(learner.model, learner.guide, episodes)
        loss.backward()
        results.append((loss.item(), [value.grad.clone() for value in learner.parameters() if value.grad is not None]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert len(results[0][1]) == len(results[1][1]) > 0
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_more_particles_tighten_the_bound() -> None:
    """ELBO < L = 3 < L = 30 < log p(y): means over 4,000 runs of a task, 5 standard errors apart."""
    learner, one = Pair("exact", model="gaussian_mean").learner(), random_regressions(num_tasks=1, features=1)
    evidence = dense_evidence(learner.model, one, "query").item()
    copies = one.tasks(torch.zeros(200, dtype=torch.long))
    exact = learner.guide.training_posterior(copies)
    guide = GivenPosterior(learner.model, Normal(exact.mean + 0.2, 1.3 * exact.stddev).to_event(2))
    means = torch.empty(3, 20)  # of 20 batches of 200 copies, for the error of their mean
    for row, particles in enumerate((1, 3, 30)):
        for column in range(means.shape[1]):
            loss = ImportanceWeighted(particles).differentiable_loss(learner.model, guide, copies)
            means[row, column] = -loss.item() / copies.num_tasks
    bounds, errors = [*means.mean(1).tolist(), evidence], (means.std(1) / math.sqrt(means.shape[1])).tolist()
    for lower, upper, error in zip(bounds, bounds[1:], errors, strict=False):
        assert upper - lower > 5 * error, (bounds, errors)


# ---------------------------------------------------------------- one encoder for prior and posterior


def without_queries(episodes: Episodes, how: str) -> Episodes:
    if how == "masked":
        return replace(episodes, query_mask=torch.zeros_like(episodes.query_mask))
    names = ("query_x", "query_y", "query_mask")
    return replace(episodes, **{name: getattr(episodes, name)[:, :0] for name in names})


@pytest.mark.parametrize("how", ["masked", "none"])
@pytest.mark.parametrize("prior", ["conditional", "count_aware"])
@pytest.mark.parametrize("model", ["few_shot_classifier", *REGRESSIONS])
def test_a_shared_encoder_learns_nothing_from_no_query(model: str, prior: str, how: str) -> None:
    """KL(q, p) = 0, since q and p are one function of one set; encoders of their own would differ."""
    for shared in (True, False):
        pair = Pair("savi", prior, settings={"shared": shared}, model=model)
        learner = pair.learner()
        nothing = without_queries(pair.tasks(), how)
        kl = closed_form_kl(learner.guide.training_posterior(nothing), learner.model.prior(nothing))
        assert kl is not None
        assert (kl.abs().max().item() < 1e-12) == shared
    something = closed_form_kl(learner.guide.training_posterior(pair.tasks()), learner.model.prior(pair.tasks()))
    assert something is not None and (something > 0).all()


@pytest.mark.parametrize("prior", ["conditional", "count_aware"])
def test_the_bound_of_no_query_is_nothing(prior: str) -> None:
    pair = Pair("savi", prior, model="gaussian_mean")
    learner, nothing = pair.learner(), without_queries(pair.tasks(), "masked")
    for objective in (Elbo(2), Elbo(1, "analytic"), ImportanceWeighted(3)):
        assert objective.differentiable_loss(learner.model, learner.guide, nothing).item() == pytest.approx(
            0, abs=1e-12
        )


@pytest.mark.parametrize("objective", [Elbo(2), ImportanceWeighted(3)], ids=lambda its: its.name)
def test_the_count_aware_encoder_can_be_the_exact_posterior(objective: Objective) -> None:
    """Its docstring's claim: at the right linear maps it is p(w | any set), so that savi's loss is -log p(Q | S)."""
    loc, scale, noise, episodes = 0.3, 1.2, 0.8, random_regressions(features=1, targets=1)
    encoder = Conditional(num_features=1, num_weights=1, num_targets=1, num_hidden=0, count_aware=True)
    with torch.no_grad():
        of: Any = encoder.encoder
        of.value_net.weight.copy_(torch.tensor([[0.0, 1.0]]))  # of the point (x, y)
        of.log_precision_net.bias.fill_(-2 * math.log(noise))
        of.prior_loc.fill_(loc)
        of.prior_log_precision.fill_(-2 * math.log(scale))
    known = gaussian_mean.Model(Gaussian(1, loc, scale), 1, 1, noise)
    for data in (episodes.observed(), episodes.pooled()):
        exact, encoded = known.exact_posterior(data), encoder(data, known.event_shape(data))
        torch.testing.assert_close(encoded.mean, exact.mean)
        torch.testing.assert_close(encoded.variance, exact.variance)
    model = gaussian_mean.Model(encoder, 1, 1, noise)
    savi = SharedGuide(model)
    loss = objective.differentiable_loss(model, savi, episodes)
    assert -loss.item() == pytest.approx(known.log_evidence(episodes).sum().item(), abs=1e-8)
