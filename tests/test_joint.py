"""Several latent sites: is a Joint the product of its sites, and does every diagnostic treat all of them?"""

from __future__ import annotations

import re
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Delta, Dirichlet, LogNormal, Normal, TorchDistribution
from pyro.infer import Trace_ELBO
from torch import Size, Tensor
from torch.distributions import kl_divergence

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.diagnostics import collapse
from pyro_metabayes.diagnostics.arviz import to_arviz
from pyro_metabayes.diagnostics.collapse import collapse_metrics, posterior_spread
from pyro_metabayes.diagnostics.coordinates import coordinates_of
from pyro_metabayes.diagnostics.gold import NutsSettings, Target, gold_posterior
from pyro_metabayes.diagnostics.predictive import observing, predictive_draws
from pyro_metabayes.diagnostics.sbc import sbc_ranks, uniformity
from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.distributions.sites import Sites
from pyro_metabayes.inference.divergences import closed_form_kl, has_density
from pyro_metabayes.seeding import noise_of
from tests.pairs import Pair, random_regressions

TASKS = 3


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def funnel() -> Joint:
    """A scale, weights given the scale, and class probabilities: batch [T], event [1 + 2 * 2 + 3]."""
    return Joint(
        {
            "tau": LogNormal(torch.zeros(TASKS), 0.5),
            "w": lambda z: Normal(0.0, z["tau"][..., None, None].expand(*z["tau"].shape, 2, 2)).to_event(2),
            "p": Dirichlet(torch.full((TASKS, 3), 2.0)),
        }
    )


def learner_of(**settings: Any) -> MetaLearner:
    """A learner with one scale per task, and a prior with sd 1."""
    learner: Any = Pair("task_scale", model="task_scale", settings=settings).learner()
    learner.model.prior_over_weights.log_scale.data.zero_()
    return learner


# ---------------------------------------------------------------- the distribution


def test_the_density_is_the_product_of_the_sites() -> None:
    joint = funnel()
    value = joint.sample((5,))
    parts = joint.sites.split(value)
    expected = LogNormal(0.0, 0.5).log_prob(parts["tau"]) + Dirichlet(torch.full((3,), 2.0)).log_prob(parts["p"])
    expected = expected + Normal(0.0, parts["tau"][..., None, None]).log_prob(parts["w"]).sum((-1, -2))
    torch.testing.assert_close(joint.log_prob(value), expected)
    assert (joint.batch_shape, joint.event_shape) == (Size([TASKS]), Size([8]))
    assert joint.has_rsample and has_density(joint) and closed_form_kl(joint, joint) is None


def test_splitting_and_joining_are_inverse() -> None:
    sites = Sites(a=Size([]), b=Size([2, 3]), c=Size([4]))
    latent = torch.randn(7, TASKS, 11)
    parts = sites.split(latent)
    assert {name: part.shape[2:] for name, part in parts.items()} == sites
    assert torch.equal(sites.join(parts), latent)
    assert sites.labels == ["a", *(f"b[{i}]" for i in range(6)), *(f"c[{i}]" for i in range(4))]


@pytest.mark.parametrize("shape", [(TASKS, 10), (TASKS, 12), ()])
def test_latents_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    sites = Sites(a=Size([]), b=Size([2, 3]), c=Size([4]))
    with pytest.raises(
        UsageError, match=rf"size 11 for the sites a \[\], .* got shape {re.escape(str(list(shape)))}; .*task\.way"
    ):
        sites.split(torch.zeros(shape))


def test_moments_of_draws_are_those_of_the_model() -> None:
    """Var w = E tau^2 = exp(2 0.5^2)."""
    torch.manual_seed(0)
    w = funnel().sites.split(funnel().sample((100_000,)))["w"]
    assert w.mean().abs() < 0.01 and abs(w.var() - torch.tensor(0.5).exp()) < 0.03


def test_moments_of_independent_sites_are_in_closed_form() -> None:
    joint = Joint({"a": Normal(torch.ones(TASKS), 2.0), "b": Normal(torch.zeros(TASKS, 2), 3.0).to_event(1)})
    assert joint.mean.tolist() == [[1.0, 0.0, 0.0]] * TASKS
    assert joint.variance.tolist() == [[4.0, 9.0, 9.0]] * TASKS


def test_a_point_estimate_of_any_site_has_no_density() -> None:
    assert not has_density(Joint({"a": Normal(torch.zeros(2), 1.0), "b": Delta(torch.zeros(2))}))


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one site"):
        Joint({})
    flat = Pair("maml", "flat").learner().model.prior(Pair("maml", "flat").tasks())
    with pytest.raises(UsageError, match="can be sampled for site 'w', got a flat distribution"):
        Joint({"w": flat})


def with_sites(**distributions: Any) -> Any:
    """A learner whose guide returns a Joint of these sites for TASKS tasks."""
    learner = learner_of()
    learner.guide.posterior = lambda observed: Joint(distributions)
    return learner


def normal(*shape: int) -> TorchDistribution:
    return Normal(torch.zeros(TASKS, *shape, requires_grad=True), 1.0).to_event(len(shape))


@pytest.mark.parametrize(
    ("sites", "got"),
    [
        ({"w": normal(2, 3), "log_tau": normal()}, r"w \[2, 3\], log_tau \[\]"),
        ({"tau": normal(), "w": normal(2, 3)}, r"tau \[\], w \[2, 3\]"),
        ({"log_tau": normal(), "w": normal(6)}, r"log_tau \[\], w \[6\]"),
        ({"w": normal(7)}, r"w \[7\]"),
    ],
)
def test_a_posterior_with_other_sites_is_refused(sites: dict[str, TorchDistribution], got: str) -> None:
    """In another order the numbers of one site would be read as those of another."""
    learner = with_sites(**sites)
    learner.guide.training_posterior = learner.guide.posterior
    expected = rf"^expected the sites log_tau \[\], w \[2, 3\] of the guide's distribution, in this order, got {got};"
    with pytest.raises(UsageError, match=expected):
        learner(random_regressions(TASKS))


def test_a_posterior_of_one_site_is_refused_for_a_model_of_two() -> None:
    learner = learner_of()
    learner.guide.training_posterior = lambda episodes: normal(7)
    with pytest.raises(
        UsageError, match=r"sites log_tau \[\], w \[2, 3\] .* in this order, got w \[7\]; return a Joint"
    ):
        learner(random_regressions(TASKS))


def test_a_guide_for_one_site_is_told_the_missing_ones() -> None:
    message = r"sites log_tau \[\], w \[2, 3\] .* in this order, got w \[2, 3\]; return a Joint of them, or use a guide"
    with pytest.raises(UsageError, match=message):
        Pair("mean_field", model="task_scale").learner()(random_regressions(TASKS))


def test_a_prior_with_other_sites_than_the_model_says_is_refused() -> None:
    learner = learner_of()
    learner.model.sites = None
    with pytest.raises(UsageError, match=r"^expected the sites w \[7\] of the prior, .* set `sites` of the model"):
        learner.model(random_regressions(TASKS))


# ---------------------------------------------------------------- objectives


def test_the_loss_is_that_of_pyro() -> None:
    learner: Any = Pair("task_scale", model="task_scale").learner()
    learner.objective.kl = "sampled"
    losses = []
    for objective in (learner.objective, Trace_ELBO(max_plate_nesting=1)):
        torch.manual_seed(1)
        losses.append(objective.loss(learner.model, learner.guide, random_regressions(TASKS)))
    assert losses[0] == pytest.approx(losses[1])


def test_the_kl_counts_every_site() -> None:
    """ELBO + KL(q, p(z | y)) is the log evidence, with the KL to the exact posterior on a grid of log tau."""
    learner, tasks = learner_of(), random_regressions(TASKS)
    learner.objective.particles = 4000
    torch.manual_seed(0)
    with torch.no_grad():
        elbo = -learner(tasks)["loss"] * TASKS
        grid, log_density, evidence = scale_on_grid(learner, tasks, "query")
        q = learner.guide._posterior_of_scale(learner.model, tasks.as_support("query"))
        share = q.log_prob(grid).exp() * (grid[1] - grid[0])
        gap = (share * (q.log_prob(grid) - log_density)).sum(0)
    assert elbo.item() == pytest.approx((evidence - gap).sum().item(), abs=0.02)


def scale_on_grid(learner: Any, tasks: Episodes, labels: str) -> tuple[Tensor, Tensor, Tensor]:
    """log tau [G, 1], log p(log tau | labels) [G, T] and log p(labels) [T], by the trapezoidal rule."""
    grid = torch.linspace(-4, 4, 4001).unsqueeze(-1)
    seen = tasks.as_support(labels)
    log_joint = learner.model.prior_of_scale(seen).log_prob(grid)
    log_joint = log_joint + learner.model.log_evidence_of_scale(grid.expand(-1, tasks.num_tasks), seen)
    evidence = (log_joint + (grid[1] - grid[0]).log()).logsumexp(0)
    return grid, log_joint - evidence, evidence


# ---------------------------------------------------------------- the guide


@torch.no_grad()
def test_quadrature_finds_the_moments_of_the_scale() -> None:
    learner, tasks = learner_of(num_nodes=25), random_regressions(TASKS, support=8)
    q = learner.guide._posterior_of_scale(learner.model, tasks.observed())
    grid, log_density, _ = scale_on_grid(learner, tasks, "support")
    share = log_density.exp() * (grid[1] - grid[0])
    mean = (share * grid).sum(0)
    torch.testing.assert_close(q.mean, mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(q.variance, (share * (grid - mean).square()).sum(0), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_nuts_finds_the_same_posterior() -> None:
    """Mean and sd of every number of the latent, to 5 standard errors and 0.02 for the form of q(log tau)."""
    learner, tasks = learner_of(), random_regressions(TASKS, support=8, seed=1)
    target = Target(learner.model, tasks, "support")
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        gold = gold_posterior(target, NutsSettings(warmup=200, draws=500, chains=2, together=TASKS))
    assert gold.r_hat.max() < 1.05 and gold.divergences.sum() == 0
    with torch.no_grad():
        w = learner.guide.posterior(target.observed).sample((100_000,))
    error = 5 * gold.w.std(0) / gold.least_ess.sqrt().unsqueeze(-1)
    assert ((gold.w.mean(0) - w.mean(0)).abs() < error + 0.02).all()
    assert ((gold.w.std(0) - w.std(0)).abs() < error + 0.02).all()


# ---------------------------------------------------------------- diagnostics


def test_elbo_and_kl_add_up_to_the_log_likelihood() -> None:
    learner, tasks = learner_of(), random_regressions(TASKS)
    with torch.no_grad(), noise_of(3):
        spread = posterior_spread(learner, tasks, learner.guide.training_posterior(tasks))
    with torch.no_grad(), noise_of(3):
        q = learner.guide.training_posterior(tasks)
        learner.model.prior(tasks)  # a Joint draws when it is made: as many draws as above
        terms = learner.objective.terms(learner.model, collapse._program(q), tasks)
    total = (spread["elbo"] + spread["kl"]).mean() * TASKS
    assert total.item() == pytest.approx(terms.log_likelihood.item(), rel=1e-10)


def test_coordinates_carry_their_jacobian() -> None:
    joint = funnel()
    coordinates = coordinates_of(joint)
    z = coordinates.random()
    latent, log_det = coordinates.latent(z)
    assert torch.isfinite(joint.log_prob(latent)).all()
    sizes = [value[0].numel() for value in z.values()]

    def of_task_0(flat: Tensor) -> Tensor:
        one = {name: value.clone() for name, value in z.items()}
        for name, part in zip(z, flat.split(sizes), strict=True):
            one[name] = torch.cat((part.view(z[name][:1].shape), z[name][1:]))
        return coordinates.latent(one)[0][0][:-1]  # probabilities sum to 1: the last is no coordinate

    jacobian = torch.func.jacrev(of_task_0)(torch.cat([value[0].flatten() for value in z.values()]))
    torch.testing.assert_close(log_det[0], jacobian.det().abs().log())


def test_the_target_is_the_joint_density_of_the_trace() -> None:
    learner, tasks = learner_of(), random_regressions(TASKS)
    target = Target(learner.model, tasks, "all")
    latent = learner.model.prior(tasks).sample()
    with observing(learner.model, "all"):
        conditioned = poutine.condition(learner.model, learner.model.sites.split(latent))
        trace = poutine.trace(conditioned).get_trace(tasks)
    torch.testing.assert_close(target.log_joint(latent).sum(), trace.log_prob_sum())


@torch.no_grad()
def test_metrics_of_each_site() -> None:
    """KL(q(log tau), p(log tau)) has a closed form; the KL of the weights is the mean over log tau of one."""
    learner, tasks = learner_of(), random_regressions(TASKS)
    metrics = collapse_metrics(learner, tasks, 5)
    kl, sd = metrics["kl_by_site"], metrics["posterior_sd_by_site"]
    assert list(kl) == list(sd) == ["log_tau", "w"]
    assert sum(kl.values()) == pytest.approx(metrics["kl"])
    assert (sd["log_tau"] ** 2 + 6 * sd["w"] ** 2) / 7 == pytest.approx(metrics["posterior_sd"] ** 2)
    seen = tasks.as_support("query")
    scale, prior = learner.guide._posterior_of_scale(learner.model, seen), learner.model.prior_of_scale(seen)
    assert sd["log_tau"] == pytest.approx(scale.variance.mean().sqrt().item(), rel=0.2)
    log_tau = scale.sample((4000,))
    weights = learner.model.posterior_given_scale(log_tau, seen)
    of_weights = closed_form_kl(weights, learner.model._prior_given_scale(log_tau, seen))
    assert of_weights is not None
    tolerance = 5 * metrics["kl_monte_carlo_error"]
    assert kl["log_tau"] == pytest.approx(kl_divergence(scale, prior).mean().item(), abs=tolerance)
    assert kl["w"] == pytest.approx(of_weights.mean().item(), abs=tolerance)


@pytest.mark.parametrize("training", [False, True])
def test_ranks_cover_all_sites(training: bool) -> None:
    learner, tasks = learner_of(), random_regressions(2000, seed=3)
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        ranks = sbc_ranks(learner, tasks, training=training)
    assert ranks.names[:2] == ["log_tau", "w[0]"]
    assert not uniformity(ranks).flagged


def test_a_scale_that_is_too_sure_is_flagged() -> None:
    learner, tasks = learner_of(), random_regressions(400, seed=3)
    honest = learner.guide._posterior_of_scale

    def too_sure(model: Any, observed: Any) -> TorchDistribution:
        q = honest(model, observed)
        return Normal(q.mean, 0.5 * q.stddev)

    learner.guide._posterior_of_scale = too_sure
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        result = uniformity(sbc_ranks(learner, tasks))
    assert result.flagged and result.p_values[0] < 0.01


def test_draws_are_named_by_site() -> None:
    learner, tasks = learner_of(), random_regressions(TASKS)
    draws = predictive_draws(learner, tasks, num_samples=6)
    assert draws.prior is not None
    for part in (draws.posterior, draws.prior):
        assert {name: value.shape for name, value in part.sites.items()} == {
            "log_tau": (6, TASKS),
            "w": (6, TASKS, 2, 3),
        }
        assert torch.equal(learner.model.sites.join(part.sites), part.w)
    pytest.importorskip("arviz")
    assert {"log_tau", "w"} <= set(to_arviz(draws).posterior.data_vars)
