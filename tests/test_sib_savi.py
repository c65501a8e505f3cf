"""The ELBO of sib_savi is a bound, exact for a diagonal posterior, and starts from the point estimate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.inference.divergences import innermost
from tests.commands import call
from tests.pairs import Pair, random_regressions, random_tasks

STEPS = {"num_steps": 2, "step_size": 0.1}
NOISE = 0.7  # of the regressions of Pair


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def orthogonal_regressions(curvature: float) -> Episodes:
    """Tasks whose queries have sum_i x_i x_i^T / noise^2 = curvature * I: the true posterior is diagonal."""
    episodes = random_regressions(query=3, whole=True)
    directions = torch.linalg.qr(episodes.query_x)[0]
    return replace(episodes, query_x=NOISE * curvature**0.5 * directions)


def test_it_is_exact_where_the_posterior_is_a_diagonal_gaussian() -> None:
    """Every single sample then gives the log evidence of the queries under N(theta^K, sigma^2)."""
    settings = {**STEPS, "initialisation": "global", "scale": 0.5, "by_entropy": False}
    pair = Pair("sib_savi", "guided", model="linear_regression", settings=settings)
    learner, episodes = pair.learner(particles=7), orthogonal_regressions(curvature=3.0)
    guide: Any = learner.guide
    with torch.no_grad():
        guide.log_label_precision.fill_(3.0).log_()
        terms = learner.objective.terms(learner.model, guide, episodes)
    its: Any = innermost(guide.posterior(episodes.observed()))
    x, scale = episodes.query_x, its.scale.expand(its.loc.shape)
    total = torch.zeros(())
    for output in range(scale.shape[1]):
        covariance = (x * scale[:, output, None].square()) @ x.mT + NOISE**2 * torch.eye(x.shape[1])
        mean = (x @ its.loc[:, output, :, None]).squeeze(-1)
        evidence = torch.distributions.MultivariateNormal(mean, covariance)
        total = total + evidence.log_prob(episodes.query_y[..., output]).sum()
    torch.testing.assert_close(-terms.loss, total, rtol=1e-10, atol=0)


@pytest.mark.parametrize("see_labels", [False, True])
def test_without_a_scale_it_is_the_point_mass_with_nothing_to_pay(see_labels: bool) -> None:
    """Loss of sib_delta, of the same parameters, to the size of the scale."""
    episodes = random_tasks()
    settings = {**STEPS, "scale": 1e-6}
    learner = Pair("sib_savi", "guided", settings={**settings, "label_precision": 100.0 * see_labels}).learner()
    delta = Pair("sib", "flat", settings={**STEPS, "posterior": "delta", "learn_step_size": True}).learner()
    with torch.no_grad():
        learner.guide.scale.log_scale.fill_(1e-6).log_()
    shared = {name: value for name, value in learner.state_dict().items() if name in delta.state_dict()}
    delta.load_state_dict({**delta.state_dict(), **shared})
    assert learner(episodes)["loss"].item() == pytest.approx(delta(episodes)["loss"].item(), rel=1e-4)
    assert abs(learner(episodes)["kl"].item()) < 1e-3


@pytest.mark.parametrize("between", [0.0, 0.2])
def test_labels_are_paid_for_and_seen_in_training_alone(between: float) -> None:
    episodes = random_tasks()
    for see_labels in (False, True):
        settings = {**STEPS, "label_precision": 100.0 * see_labels, "scale": 0.3, "between": between}
        guide = Pair("sib_savi", "guided", settings=settings).learner().guide
        assert guide.sees_query_labels == see_labels
        p, q = guide.posterior(episodes.observed()), guide.training_posterior(episodes)
        kl = torch.distributions.kl_divergence(q, p)
        assert (kl > 0.01).all() if see_labels else (kl.abs() < 1e-9).all()
        assert torch.equal(guide.model.prior(episodes).mean, p.mean)


@pytest.mark.parametrize("between", [0.0, 0.2])
def test_labels_narrow_and_improve_the_posterior(between: float) -> None:
    episodes = random_tasks(query=6)
    learner = Pair("sib_savi", "guided", settings={**STEPS, "scale": 0.1, "between": between}).learner()
    p, q = learner.guide.posterior(episodes.observed()), learner.guide.training_posterior(episodes)
    assert (q.variance < p.variance).all()
    before, after = (
        learner.model.likelihood(its.mean, episodes.query_x, episodes).log_prob(episodes.query_y).sum()
        for its in (p, q)
    )
    assert after > before


def test_the_posterior_with_noise_between_classes_by_hand() -> None:
    """One Newton step, with full matrices."""
    episodes = random_tasks()
    settings = {**STEPS, "scale": 0.1, "between": 0.3, "by_entropy": False}
    guide: Any = Pair("sib_savi", "guided", settings=settings).learner().guide
    p, q = innermost(guide.posterior(episodes.observed())), innermost(guide.training_posterior(episodes))
    theta = p.mean.detach().requires_grad_()
    loss = -guide.model.likelihood(theta, episodes.query_x, episodes).log_prob(episodes.query_y).sum()
    (slope,) = torch.autograd.grad(loss, theta)
    centred = theta - theta.mean(1, keepdim=True)
    outer = (centred.mT @ centred).unsqueeze(1)
    kappa, h_b = guide.log_between.exp(), guide.log_between_precision.exp()
    sigma, h = guide.scale.log_scale.exp(), guide.log_label_precision.exp()
    torch.testing.assert_close(p.covariance_matrix, (sigma**2).diag() + kappa**2 * outer.expand_as(p.covariance_matrix))
    covariance = (1 / (1 / sigma**2 + h)).diag() + outer / (1 / kappa**2 + h_b)
    torch.testing.assert_close(q.covariance_matrix, covariance.expand_as(q.covariance_matrix))
    torch.testing.assert_close(q.mean, theta - (covariance @ slope.unsqueeze(-1)).squeeze(-1))


def test_the_scale_follows_the_entropy_of_the_queries_that_a_class_attracts() -> None:
    """By hand; masked queries have no say, and slope 0 is the plain scale."""
    episodes = random_tasks(query=6)
    mask = episodes.query_mask.clone()
    mask[:, 3] = False
    episodes = replace(episodes, query_mask=mask)
    guide: Any = Pair("sib_savi", "guided", settings={**STEPS, "scale": 0.1}).learner().guide
    observed = episodes.observed()
    its: Any = innermost(guide.posterior(observed))
    for task in range(episodes.num_tasks):
        kept = observed.query_mask[task]
        probs = guide.model.outputs(its.loc, observed.query_x)[task, kept].softmax(-1)
        entropy = torch.distributions.Categorical(probs=probs).entropy()
        of_class = (probs * entropy.unsqueeze(-1)).sum(0) / probs.sum(0)
        expected = guide.scale.log_scale.exp() * (guide.entropy_slope * of_class).exp().unsqueeze(-1)
        torch.testing.assert_close(its.scale[task], expected)
    with torch.no_grad():
        guide.entropy_slope.zero_()
    torch.testing.assert_close(guide.posterior(observed).variance[0, 0], (2 * guide.scale.log_scale).exp())


def test_it_asks_for_its_prior_and_the_prior_for_its_guide() -> None:
    with pytest.raises(UsageError, match="take prior=guided"):
        Pair("sib_savi", "gaussian").learner()
    learner = Pair("sib", "guided").learner()
    with pytest.raises(UsageError, match="set guide=sib_savi"):
        learner(random_tasks())
    pair = Pair("sib_savi", "guided", model="linear_regression", settings={**STEPS, "initialisation": "global"})
    with pytest.raises(UsageError, match=r"set guide\.by_entropy=false"):
        pair.learner()(pair.tasks())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("guide.posterior=delta", "guide.posterior to be one of normal, amortized, got 'delta'"),
        ("guide.between=-1", "guide.label_precision >= 0 and between >= 0, got label_precision=100.0 and between=-1.0"),
        ("guide.label_precision=-1", "label_precision >= 0 and between >= 0, got label_precision=-1.0 and between=0.0"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    assert message in call("run", "data=gaussian_features", "guide=sib_savi", setting).error
