"""Values and gradients of the objectives, compared with Pyro's, explicit formulae and a conjugate model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Categorical, MultivariateNormal, Normal, TorchDistribution
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Size, Tensor, nn
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError, fit
from pyro_metabayes.build import build
from pyro_metabayes.inference.divergences import (
    mixture_kl_bounds,
    mixture_kl_convexity_bound,
    mixture_kl_variational_bound,
)
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.importance_weighted import ImportanceWeighted
from pyro_metabayes.objectives.monte_carlo import MonteCarlo
from pyro_metabayes.objectives.objective import Objective
from tests.covering import covering_first
from tests.pairs import OBJECTIVES, Pair, every_pair, random_tasks

SIB = {"num_steps": 2, "step_size": 0.1}
DENSITIES = [
    Pair("savi", "conditional"),
    Pair("savi", "count_aware", "linear"),
    Pair("mean_field", "gaussian"),
    Pair("mean_field", "mixture"),
    Pair("mean_field", "conditional", "linear"),
    Pair("sib", "gaussian", settings={**SIB, "inner_kl": 1.0}),
    Pair("sib", "conditional", settings={**SIB, "posterior": "amortized", "inner_samples": 2}),
    Pair("savi", "conditional", settings={"shared": False}),
    Pair("savi", "count_aware", settings={"shared": False}, model="linear_regression"),
    Pair("savi", "conditional", model="gaussian_mean"),
    Pair("mean_field", model="linear_regression", observe="all"),
    Pair("sib", settings={**SIB, "initialisation": "global"}, model="linear_regression"),
]
POINTS = [Pair("sib", "gaussian", settings={**SIB, "posterior": "delta"}), Pair("proto", "flat")]


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def value_and_gradients(
    learner: MetaLearner, loss: Callable[..., Tensor], episodes: Episodes, **settings: float
) -> tuple[float, dict[str, Tensor]]:
    """The value of a loss with noise from a fixed seed, and its gradient for every parameter."""
    learner.zero_grad(set_to_none=False)
    torch.manual_seed(11)
    value = loss(learner.model, learner.guide, episodes, **settings)
    value.backward()
    return value.item(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in learner.named_parameters()
    }


def assert_equal_losses(
    pair: Pair, one: Callable[..., Tensor], other: Callable[..., Tensor], **settings: float
) -> None:
    learner = pair.learner()
    (value, gradients), (expected, expected_gradients) = (
        value_and_gradients(learner, loss, pair.tasks(), **settings) for loss in (one, other)
    )
    assert value == pytest.approx(expected, rel=1e-10)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------- the ELBO is Pyro's


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
@pytest.mark.parametrize("pair", [*DENSITIES, *POINTS, Pair("exact", model="linear_regression")], ids=str)
def test_sampled_elbo_is_trace_elbo(pair: Pair, kl_weight: float, particles: int) -> None:
    theirs = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    ours = Elbo(particles, kl="sampled").differentiable_loss
    assert_equal_losses(pair, ours, theirs.differentiable_loss, kl_weight=kl_weight)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
@pytest.mark.parametrize("pair", DENSITIES, ids=str)
def test_analytic_elbo_is_mean_field_elbo(pair: Pair, kl_weight: float, particles: int) -> None:
    theirs = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    ours = Elbo(particles, kl="analytic").differentiable_loss
    assert_equal_losses(pair, ours, theirs.differentiable_loss, kl_weight=kl_weight)


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_analytic_elbo_of_savi_by_hand(kl_weight: float) -> None:
    """loss = sum_t { -(1/L) sum_l sum_i log p(y_i | x_i, w_l) + beta KL(q_t, p_t) }, q_t of both sets."""
    learner, episodes, particles = Pair("savi", "conditional").learner(), random_tasks(), 3

    def by_hand(model: Any, guide: Any, data: Episodes, kl_weight: float) -> Tensor:
        encoder = model.prior_over_weights.encoder
        p = encoder(data.support_x, data.support_y, data.support_mask, data.num_classes)
        x, y = torch.cat((data.support_x, data.query_x), 1), torch.cat((data.support_y, data.query_y), 1)
        q = encoder(x, y, torch.ones_like(y, dtype=torch.bool), data.num_classes)
        noise = torch.randn(particles, *q[0].shape)
        loss = torch.zeros(())
        for task in range(data.num_tasks):
            for sample in range(particles):
                w = q[0][task] + q[1][task] * noise[sample, task]
                logits = model.head.scale * (nn.functional.normalize(w, dim=-1) @ data.query_x[task].T).T
                loss = loss + nn.functional.cross_entropy(logits, data.query_y[task], reduction="sum") / particles
            ratio = (q[1][task] / p[1][task]).square()
            shift = ((q[0][task] - p[0][task]) / p[1][task]).square()
            loss = loss + kl_weight * 0.5 * (ratio + shift - 1 - ratio.log()).sum()
        return loss

    ours = Elbo(particles, kl="analytic").differentiable_loss
    (value, gradients), (expected, by_hand_gradients) = (
        value_and_gradients(learner, loss, episodes, kl_weight=kl_weight) for loss in (ours, by_hand)
    )
    assert value == pytest.approx(expected, rel=1e-10)
    for name, gradient in by_hand_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kl_weight", [1.0, 0.01])
def test_the_loss_of_a_point_estimate_has_no_lower_bound_in_the_scale_of_the_prior(kl_weight: float) -> None:
    """It falls by kl_weight log(10) per weight and task for each tenth of the scale, where all points are the mean."""
    settings = {**SIB, "posterior": "delta", "num_steps": 0, "initialisation": "global"}
    learner, episodes = Pair("sib", "gaussian", settings=settings).learner(), random_tasks()
    prior: Any = learner.model.prior_over_weights
    with torch.no_grad():
        learner.get_parameter("guide.start.point").fill_(0.5)
        prior.loc.fill_(0.5)
        num_weights = learner.guide.posterior(episodes.observed()).mean.eq(0.5).sum()
        losses = []
        for scale in (1e-1, 1e-2, 1e-3, 1e-30):
            prior.log_scale.fill_(math.log(scale))
            losses.append(Elbo().differentiable_loss(learner.model, learner.guide, episodes, kl_weight=kl_weight))
    fall = kl_weight * num_weights * math.log(10)
    torch.testing.assert_close(-torch.stack(losses).diff(), torch.tensor([fall, fall, 27 * fall]))


def test_a_fixed_scale_of_the_prior_is_not_trained() -> None:
    """As a point estimate (MAP) needs it: the mean of the prior is learned, its scale is not."""
    specification = Pair("sib", "gaussian", settings={**SIB, "posterior": "delta"}).specification()
    specification["prior"] = specification["prior"] | {"scale": 0.3, "learn_scale": False}
    learner = MetaLearner.from_specification(specification)
    prior: Any = learner.model.prior_over_weights
    loc = prior.loc.detach().clone()
    fit(learner, random_tasks(), random_tasks(), steps=2, batch_size=3)
    torch.testing.assert_close(prior.log_scale, torch.full_like(loc, 0.3).log())
    assert (prior.loc != loc).all()
    prior.start_at_moments(loc + 1, torch.eye(len(loc)))
    torch.testing.assert_close(prior.log_scale, torch.full_like(loc, 0.3).log())
    torch.testing.assert_close(prior.loc.detach(), loc + 1)


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_the_logged_kl_carries_no_weight(kl: str) -> None:
    learner, episodes = Pair("savi", "conditional").learner(), random_tasks()
    parts = []
    for kl_weight in (1.0, 0.1):
        torch.manual_seed(3)
        parts.append(Elbo(2, kl).terms(learner.model, learner.guide, episodes, kl_weight=kl_weight))
        terms = parts[-1]
        assert terms.loss.item() == pytest.approx((kl_weight * terms.kl - terms.log_likelihood).item(), rel=1e-12)
    torch.testing.assert_close(parts[0].kl, parts[1].kl)
    torch.testing.assert_close(parts[0].log_likelihood, parts[1].log_likelihood)


def test_a_sample_that_has_no_gradient_is_refused() -> None:
    learner = Pair("mc", "mixture").learner()  # q is the mixture itself
    for objective in (Elbo(), MonteCarlo(2), ImportanceWeighted(2)):
        with pytest.raises(UsageError, match="expected a reparametrised distribution at site 'w'"):
            objective.terms(learner.model, learner.guide, random_tasks())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"objective\.kl to be one of sampled, analytic, variational, convexity, got 'exact'"
    ):
        Elbo(kl="exact")
    for objective in (Elbo, MonteCarlo, ImportanceWeighted):
        with pytest.raises(UsageError, match=r"train\.particles >= 1, got 0"):
            objective(0)


# ---------------------------------------------------------------- exact, where the posterior is known


class GaussianMean(pyro_metabayes.Model):
    """w ~ N(m, s^2) and y_i | w ~ N(w, sigma^2), without inputs. Posterior and evidence have closed forms."""

    def __init__(self, mean: float = 0.7, prior_sd: float = 1.3, noise_sd: float = 0.6) -> None:
        super().__init__()
        self.mean, self.prior_sd, self.noise_sd = mean, prior_sd, noise_sd

    def event_shape(self, observed: Observed) -> Size:
        return Size(())

    def prior(self, observed: Observed) -> TorchDistribution:
        return Normal(self.mean, self.prior_sd).expand((observed.num_tasks,))

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return w.unsqueeze(-1).expand(*w.shape, x.shape[1])

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        return Normal(self.outputs(w, x), self.noise_sd)


class ExactPosterior(pyro_metabayes.Guide):
    """The exact p(w | query labels) as training posterior, with an optional shift and factor of its sd."""

    shift, factor = 0.0, 1.0

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        model: Any = self.model
        count = episodes.query_mask.sum(-1)
        total = (episodes.query_y * episodes.query_mask).sum(-1)
        precision = model.prior_sd**-2 + count * model.noise_sd**-2
        mean = (model.mean * model.prior_sd**-2 + total * model.noise_sd**-2) / precision
        return Normal(mean + self.shift, self.factor * precision.rsqrt())


def measurements(num_tasks: int = 4, num_points: int = 6) -> Episodes:
    """Tasks of different sizes: task t has at most t + 3 points."""
    x = torch.zeros(num_tasks, num_points, 1)
    mask = torch.arange(num_points) < torch.arange(num_tasks).unsqueeze(-1) + 3
    return Episodes(
        support_x=x[:, :0],
        support_y=x[:, :0, 0],
        query_x=x,
        query_y=torch.randn(num_tasks, num_points) + 2,
        query_mask=mask,
    )


def log_evidence(model: GaussianMean, episodes: Episodes) -> Tensor:
    """log N(y; m, sigma^2 I + s^2 1 1^T), a sum over tasks."""
    total = torch.zeros(())
    for y, mask in zip(episodes.query_y, episodes.query_mask, strict=True):
        n = int(mask.sum())
        covariance = model.noise_sd**2 * torch.eye(n) + model.prior_sd**2 * torch.ones(n, n)
        total = total + MultivariateNormal(torch.full((n,), model.mean), covariance).log_prob(y[mask])
    return total


@pytest.mark.parametrize("particles", [1, 3])
def test_every_sample_of_the_exact_posterior_gives_the_evidence(particles: int) -> None:
    model, episodes = GaussianMean(), measurements()
    guide = ExactPosterior(model)
    for seed in range(5):
        torch.manual_seed(seed)
        loss = Elbo(particles, kl="sampled").differentiable_loss(model, guide, episodes)
        assert -loss.item() == pytest.approx(log_evidence(model, episodes).item(), abs=1e-8)


def test_the_gap_of_the_bound_is_the_kl_to_the_posterior() -> None:
    """log p(y) - ELBO = KL(q, p(w | y)), from 200,000 samples, within 5 standard errors."""
    model, episodes, particles = GaussianMean(), measurements(num_tasks=1), 200_000
    exact, guide = ExactPosterior(model), ExactPosterior(model)
    guide.shift, guide.factor = 0.2, 1.4
    q = guide.training_posterior(episodes)
    gap = kl_divergence(q, exact.training_posterior(episodes)).sum()
    w = q.sample((particles,))
    of_each = model.likelihood(w, episodes.query_x, episodes).mask(episodes.query_mask).to_event(1)
    error = (of_each.log_prob(episodes.query_y) + model.prior(episodes).log_prob(w) - q.log_prob(w)).std()
    elbo = -Elbo(particles).differentiable_loss(model, guide, episodes)
    measured = log_evidence(model, episodes) - elbo
    assert measured.item() == pytest.approx(gap.item(), abs=5 * error.item() / math.sqrt(particles))
    assert gap > 20 * error / math.sqrt(particles), "a gap too small to be told from noise shows nothing"


def test_support_labels_join_the_evidence() -> None:
    """observe="support" conditions on the support labels alone, "all" on both."""
    model, episodes = GaussianMean(), measurements()
    swapped = replace(
        episodes,
        support_x=episodes.query_x,
        support_y=episodes.query_y,
        support_mask=episodes.query_mask,
        query_y=torch.full_like(episodes.query_y, 100.0),
    )

    def q_of(kept: Episodes) -> Callable[..., None]:
        q = ExactPosterior(model).training_posterior(kept)

        def guide(data: Any, kl_weight: float = 1.0) -> None:
            with pyro.plate("task", data.num_tasks, dim=-1):
                pyro.sample("w", q)

        return guide

    model.observe = "support"
    loss = Elbo().differentiable_loss(model, q_of(episodes), swapped)
    assert -loss.item() == pytest.approx(log_evidence(model, episodes).item(), abs=1e-8)
    model.observe = "all"
    both = replace(swapped, query_y=episodes.query_y + 1)
    pooled = replace(
        episodes,
        query_x=episodes.query_x.repeat(1, 2, 1),
        query_y=torch.cat((both.support_y, both.query_y), 1),
        query_mask=episodes.query_mask.repeat(1, 2),
    )
    loss = Elbo().differentiable_loss(model, q_of(pooled), both)
    assert -loss.item() == pytest.approx(log_evidence(model, pooled).item(), abs=1e-8)


# ---------------------------------------------------------------- every objective of the folder


def of_regression(guide: str, name: str, particles: int) -> tuple[Any, Any, Objective, Episodes]:
    """A conjugate model, a guide, the objective of a YAML, and tasks."""
    pair = Pair(guide, model="linear_regression", objective=name)
    learner = pair.learner(particles=particles)
    return learner.model, learner.guide, learner.objective, pair.tasks()


BOUNDS = [name for name, settings in OBJECTIVES.items() if build(settings, "objective", particles=1).bound]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_the_evidence_at_the_exact_posterior(name: str) -> None:
    """In value for every draw, and in the gradient for the prior on average over draws."""
    for particles in (1, 3, 4096):
        model, guide, objective, episodes = of_regression("exact", name, particles)
        evidence = model.log_predictive(model.prior(episodes), episodes).sum()
        loss = objective.differentiable_loss(model, guide, episodes)
        assert loss.item() == pytest.approx(-evidence.item(), rel=1e-9)
    parameters = list(model.parameters())
    got, expected = (torch.cat(torch.autograd.grad(value, parameters)) for value in (loss, -evidence))
    assert (got - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_below_the_evidence_elsewhere(name: str) -> None:
    """On average over draws of an approximate posterior."""
    model, guide, objective, episodes = of_regression("mean_field", name, 8)
    evidence = model.log_predictive(model.prior(episodes), episodes).sum().item()
    losses = [objective.differentiable_loss(model, guide, episodes).item() for _ in range(10)]
    assert -sum(losses) / len(losses) < evidence


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_falls_as_labels_become_more_probable(name: str) -> None:
    model, guide, objective, episodes = of_regression("mean_field", name, 8)
    mean = model.outputs(guide.posterior(episodes.observed()).mean, episodes.query_x).detach()
    losses = [
        objective.differentiable_loss(model, guide, replace(episodes, query_y=mean + shift)).item()
        for shift in (0.0, 1.0, 4.0)
    ]
    assert losses[0] < losses[1] < losses[2]


# ---------------------------------------------------------------- plain Pyro functions


def plain_model(data: Episodes, kl_weight: float = 1.0) -> None:
    with pyro.plate("task", data.num_tasks, dim=-1):
        with poutine.scale(scale=kl_weight):
            w = pyro.sample("w", Normal(0.7, 1.3))
        y = Normal(w.unsqueeze(-1), 0.6).expand((*w.shape, data.query_x.shape[1])).mask(data.query_mask)
        pyro.sample("y", y.to_event(1), obs=getattr(data, "query_y", None))


class PlainGuide:
    """A guide with two free parameters, written in plain Pyro."""

    def __init__(self) -> None:
        self.loc = torch.zeros((), requires_grad=True)
        self.log_scale = torch.zeros((), requires_grad=True)

    def __call__(self, data: Any, kl_weight: float = 1.0) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(()))
        scale = pyro.param("scale", lambda: torch.ones(()), constraint=torch.distributions.constraints.positive)
        with pyro.plate("task", data.num_tasks, dim=-1), poutine.scale(scale=kl_weight):
            pyro.sample("w", Normal(loc, scale))


@pytest.mark.parametrize("particles", [1, 4])
def test_a_hand_written_pair_gives_the_losses_of_the_classes(particles: int) -> None:
    episodes = measurements()

    class Fixed(ExactPosterior):
        def training_posterior(self, episodes: Observed) -> TorchDistribution:
            return Normal(0.0, 1.0).expand((episodes.num_tasks,))

        posterior = training_posterior

    model = GaussianMean()
    for objective in (
        Elbo(particles),
        Elbo(particles, "analytic"),
        MonteCarlo(particles),
        MonteCarlo(particles, True),
        ImportanceWeighted(particles),
    ):
        losses = []
        for pair in ((plain_model, PlainGuide()), (model, Fixed(model))):
            torch.manual_seed(2)
            losses.append(objective.differentiable_loss(*pair, episodes, kl_weight=0.5).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    "objective",
    [Elbo(8), Elbo(8, "analytic"), MonteCarlo(32, joint=True), ImportanceWeighted(8)],
    ids=lambda o: o.name,
)
def test_svi_learns_a_hand_written_pair(objective: Objective) -> None:
    episodes = measurements()
    loss = objective if isinstance(objective, Elbo) else objective.differentiable_loss
    svi = SVI(plain_model, PlainGuide(), pyro.optim.Adam({"lr": 0.05}), loss)
    losses = [svi.step(episodes) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 10
    assert pyro.param("loc").item() > 0.5  # the labels are near 2


# ---------------------------------------------------------------- Monte Carlo


def log_likelihoods(learner: MetaLearner, episodes: Episodes, particles: int, seed: int) -> Tensor:
    """log p(y_ti | x_ti, w_l) [L, T, Q] of the samples that MonteCarlo draws from this seed."""
    torch.manual_seed(seed)
    q = learner.guide.posterior(episodes.observed())
    w = q.expand((particles, episodes.num_tasks)).rsample()
    return Categorical(logits=learner.model.outputs(w, episodes.query_x)).log_prob(episodes.query_y)


def ragged(episodes: Episodes) -> Episodes:
    mask = torch.rand(episodes.query_mask.shape) < 0.6
    mask[:, 0] = True
    return replace(episodes, query_mask=mask)


@pytest.mark.parametrize("pair", [Pair("mc", "conditional"), Pair("mc", "count_aware", "linear")], ids=str)
@pytest.mark.parametrize("particles", [2, 5])
@pytest.mark.parametrize("joint", [False, True])
def test_monte_carlo_by_hand(pair: Pair, particles: int, joint: bool) -> None:
    """log-mean-exp for each query point, or for each task's product; masked points do not count."""
    learner, episodes = pair.learner(), ragged(random_tasks())
    log_p, expected = log_likelihoods(learner, episodes, particles, seed=4), 0.0
    for task in range(episodes.num_tasks):
        kept = [i for i in range(episodes.query_y.shape[1]) if episodes.query_mask[task, i]]
        groups = [kept] if joint else [[i] for i in kept]
        for group in groups:
            products = [math.exp(sum(log_p[sample, task, i].item() for i in group)) for sample in range(particles)]
            expected -= math.log(sum(products) / particles)
    torch.manual_seed(4)
    terms = MonteCarlo(particles, joint).terms(learner.model, learner.guide, episodes)
    assert terms.loss.item() == pytest.approx(expected, rel=1e-10)
    assert terms.kl is None


class MixesTasksInTheLog(MonteCarlo):
    """A faulty objective, with the log-mean-exp of the sum over tasks."""

    def _log_predictive(self, site: Any) -> Tensor:
        points = site["fn"].base_dist.log_prob(site["value"])
        return points.sum((-1, -2)).logsumexp(0) - math.log(self.particles)


def test_joint_monte_carlo_is_renyi_at_zero() -> None:
    """RenyiELBO(alpha=0) with the conditional prior as guide, task by task, on the same samples."""
    learner, episodes, particles = Pair("mc", "conditional").learner(), random_tasks(), 6
    renyi = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(4)
    expected = renyi.loss(learner.model, learner.guide, episodes)
    losses = []
    for objective in (MonteCarlo(particles, joint=True), MixesTasksInTheLog(particles, joint=True)):
        torch.manual_seed(4)
        losses.append(objective.differentiable_loss(learner.model, learner.guide, episodes).item())
    assert losses[0] == pytest.approx(expected, rel=1e-10)
    assert abs(losses[1] - expected) > 1e-3 * abs(expected), "the check would not notice a sum over tasks in the log"


def test_one_particle_is_the_plain_likelihood() -> None:
    learner, episodes = Pair("mc", "conditional").learner(), ragged(random_tasks())
    expected = -(log_likelihoods(learner, episodes, 1, seed=4)[0] * episodes.query_mask).sum().item()
    for joint in (False, True):
        torch.manual_seed(4)
        loss = MonteCarlo(1, joint).differentiable_loss(learner.model, learner.guide, episodes)
        assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("joint", [False, True])
def test_masks_outside_the_event_and_plain_sites_count(joint: bool) -> None:
    """A mask put on after to_event, and a site without event dimension, mean what they mean to Pyro."""
    episodes, particles = measurements(), 3
    of_task = torch.tensor([True, False, True, True])

    def model(data: Episodes) -> None:
        with pyro.plate("task", data.num_tasks, dim=-1):
            w = pyro.sample("w", Normal(0.0, 1.0))
            pyro.sample("one", Normal(w, 0.5), obs=data.query_y[:, 0])
            y = Normal(w.unsqueeze(-1), 0.6).expand((*w.shape, data.query_x.shape[1]))
            pyro.sample("y", y.to_event(1).mask(of_task), obs=data.query_y)

    def guide(data: Any) -> None:
        with pyro.plate("task", data.num_tasks, dim=-1):
            pyro.sample("w", Normal(0.0, 1.0))

    torch.manual_seed(1)
    w = Normal(0.0, 1.0).expand((particles, 4)).sample().unsqueeze(-1)
    one = Normal(w, 0.5).log_prob(episodes.query_y[:, :1])
    many = Normal(w, 0.6).log_prob(episodes.query_y) * of_task.unsqueeze(-1)
    many = many.sum(-1, keepdim=True) if joint else many
    expected = sum((part.logsumexp(0) - math.log(particles)).sum() for part in (one, many))
    torch.manual_seed(1)
    loss = MonteCarlo(particles, joint).differentiable_loss(model, guide, episodes)
    assert -loss.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("joint", [False, True])
def test_monte_carlo_never_shows_query_labels(joint: bool) -> None:
    learner, seen = Pair("savi", "conditional").learner(), []

    class Watching(type(learner.guide)):  # type: ignore[misc]
        def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
            seen.append(data)
            super().forward(data, kl_weight)

    MonteCarlo(2, joint).terms(learner.model, Watching(learner.model), random_tasks())
    assert [type(data) for data in seen] == [Observed]
    assert not any(hasattr(data, "query_y") for data in seen)


# ---------------------------------------------------------------- no host synchronisation


class NoSynchronisation(TorchDispatchMode):
    """Raises if an operation would wait for a CUDA device: values are read, or shapes depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            raise AssertionError(f"aten.{name} waits for the device")
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise AssertionError("indexing with a mask waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "pair",
    [
        Pair("sib", "flat", settings={**SIB, "posterior": "delta"}),
        Pair("sib", "gaussian", settings={**SIB, "inner_kl": 1.0, "inner_samples": 2}),
        Pair("sib", "mixture", "linear", settings={**SIB, "inner_kl": 1.0, "synthetic_gradient": "equivariant"}),
        Pair("mc", "conditional", objective="monte_carlo"),
        Pair("savi", "count_aware"),
        Pair("proto", "flat"),
        Pair("mean_field", "mixture"),
        Pair("mean_field", objective="importance_weighted"),
        Pair("savi", "count_aware", settings={"shared": False}, model="gaussian_mean"),
        Pair("exact", model="gaussian_mean", observe="all"),
        Pair("exact", model="linear_regression", observe="all"),
    ],
    ids=str,
)
@pytest.mark.parametrize("particles", [1, 2])
def test_a_step_does_not_wait_for_the_device(pair: Pair, particles: int) -> None:
    learner, episodes = pair.learner(particles=particles), ragged(pair.tasks())
    with pyro.validation_enabled(False), NoSynchronisation():
        learner(episodes, kl_weight=0.5)["loss"].backward()


@pytest.mark.parametrize(
    "waits",
    [lambda x: x.sum().item(), lambda x: bool(x.sum()), lambda x: x[x > 0], lambda x: (x > 0).nonzero()],
)
def test_waiting_is_noticed(waits: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
        waits(torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to count synchronisations on")
@pytest.mark.parametrize("prior", ["gaussian", "conditional"])
def test_a_step_does_not_synchronise_with_a_gpu(prior: str) -> None:
    """As the device itself counts them: forward, backward and the optimiser's step."""
    pair = Pair("sib", prior, settings=SIB) if prior == "gaussian" else Pair("savi", prior)
    learner, episodes = pair.learner().to("cuda"), pair.tasks().to("cuda")
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    with pyro.validation_enabled(False):
        for mode in ("default", "error"):  # the first step loads kernels
            torch.cuda.set_sync_debug_mode(mode)
            optimizer.zero_grad()
            learner(episodes)["loss"].backward()
            optimizer.step()
    torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- pyro.infer.SVI

TRAINED = [pair for pair in every_pair() if pair.prior != "mixture" or pair.guide in ("sib", "mean_field")]
LOSSES = {
    "theirs": Trace_ELBO(),
    "elbo": Elbo(),
    "monte_carlo": MonteCarlo(2).differentiable_loss,
    "importance_weighted": ImportanceWeighted(2).differentiable_loss,
}


def svi_moves_what_has_a_gradient(pair: Pair, loss: str) -> None:
    """Check that SVI changes a parameter if, and only if, the loss has a gradient for it."""
    learner, episodes = pair.learner(), pair.tasks()
    torch.manual_seed(1)
    objective = LOSSES[loss]
    plain = getattr(objective, "differentiable_loss", objective)
    plain(learner.model, learner.guide, episodes).backward()
    expected = {
        name
        for name, parameter in learner.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-10
    }
    learner.zero_grad()
    before = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    torch.manual_seed(1)
    SVI(learner.model, learner.guide, pyro.optim.SGD({"lr": 1e-3}), objective).step(episodes)
    moved = {name for name, parameter in learner.named_parameters() if (parameter - before[name]).abs().max() > 1e-14}
    assert moved >= expected
    assert all(
        (value - before[name]).abs().max() < 1e-12 for name, value in learner.named_parameters() if name not in expected
    )
    assert not dict(pyro.get_param_store().named_parameters()), "parameters belong to the learner, not to the store"


@pytest.mark.parametrize("pair", covering_first(TRAINED), ids=str)
def test_svi_moves_what_the_elbo_has_a_gradient_for(pair: Pair) -> None:
    svi_moves_what_has_a_gradient(pair, "elbo")


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "elbo"])
@pytest.mark.parametrize("pair", covering_first(TRAINED, (), settings=False), ids=str)
def test_svi_moves_what_another_loss_has_a_gradient_for(pair: Pair, loss: str) -> None:
    svi_moves_what_has_a_gradient(pair, loss)


@pytest.mark.parametrize("pair", [*DENSITIES, *POINTS], ids=str)
def test_svi_and_the_learner_take_the_same_step(pair: Pair) -> None:
    """SVI's loss is the learner's times the number of tasks, and so is its SGD step."""
    episodes, rate = pair.tasks(), 1e-3
    ours, theirs = pair.learner(), pair.learner()
    torch.manual_seed(8)
    loss = ours(episodes)["loss"] * episodes.num_tasks
    loss.backward()
    torch.optim.SGD(ours.parameters(), lr=rate).step()
    torch.manual_seed(8)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.SGD({"lr": rate}), Elbo())
    assert svi.step(episodes) == pytest.approx(loss.item(), rel=1e-10)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(other, one, msg=lambda m, n=name: f"{n}: {m}")


def test_two_learners_do_not_share_parameters() -> None:
    pair = Pair("sib", settings=SIB)
    one, two = pair.learner(seed=0), pair.learner(seed=1)
    kept = {name: value.detach().clone() for name, value in two.named_parameters()}
    svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(random_tasks())
    two(random_tasks())
    for name, value in two.named_parameters():
        assert torch.equal(value, kept[name]), name


# ---------------------------------------------------------------- the bound for a mixture


def test_the_mixture_bounds_are_above_the_kl_and_exact_for_equal_components() -> None:
    """KL <= variational bound <= convexity bound."""
    episodes = random_tasks()
    learner = Pair("mean_field", "mixture").learner()
    q, p = learner.guide.posterior(episodes.observed()), learner.model.prior(episodes.observed())
    w = q.sample((20_000,))
    sampled = q.log_prob(w) - p.log_prob(w)
    error = sampled.std(0) / math.sqrt(len(w))
    assert (mixture_kl_variational_bound(q, p) > sampled.mean(0) - 4 * error).all()
    assert (mixture_kl_convexity_bound(q, p) > mixture_kl_variational_bound(q, p)).all()
    prior = learner.model.prior_over_weights
    with torch.no_grad():
        prior.loc.copy_(prior.loc[:1].expand_as(prior.loc))
        prior.log_scale.copy_(prior.log_scale[:1].expand_as(prior.log_scale))
    single = Normal(prior.loc[0], prior.log_scale[0].exp()).expand(q.batch_shape + q.event_shape).to_event(2)
    p = learner.model.prior(episodes.observed())
    for bound in (mixture_kl_variational_bound, mixture_kl_convexity_bound):
        torch.testing.assert_close(bound(q, p), kl_divergence(q, single))


@pytest.mark.parametrize("kl", ["variational", "convexity"])
def test_a_bound_on_the_kl_takes_its_place_in_the_loss(kl: str) -> None:
    learner, episodes = Pair("mean_field", "mixture").learner(), random_tasks()
    terms = Elbo(particles=2, kl=kl).terms(learner.model, learner.guide, episodes, kl_weight=0.3)
    q, p = learner.guide.posterior(episodes.observed()), learner.model.prior(episodes.observed())
    bound = mixture_kl_bounds(q, p)[kl].sum()
    torch.testing.assert_close(terms.kl, bound)
    torch.testing.assert_close(terms.loss, 0.3 * bound - terms.log_likelihood)
    single = Pair("mean_field", "gaussian").learner()
    with pytest.raises(UsageError, match=f"objective.kl={kl}, got posterior Normal and prior SharedNormal; use"):
        Elbo(kl=kl).terms(single.model, single.guide, episodes)
