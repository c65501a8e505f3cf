"""The joint NLL, compared with closed forms and with averages over very many draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Size, Tensor

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evidence import annealing, precision
from pyro_metabayes.evidence import joint as joint_module
from pyro_metabayes.evidence.annealing import annealed_bounds
from pyro_metabayes.evidence.importance import effective_size
from pyro_metabayes.evidence.joint import JointPredictive, estimated_joint, joint_predictive
from pyro_metabayes.evidence.latent import latent_of
from pyro_metabayes.evidence.proposal import Target, log_likelihood, proposal_of
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.averages import log_mean_exp
from tests.pairs import FEATURES, HEADS, WAY, Pair, random_regressions, random_tasks, stream_of

SCORES = ("joint_nll", "joint_nll_lower", "joint_nll_upper", "joint_pareto_k", "joint_effective_size", "joint_trusted")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def gaussians_over(shape: tuple[int, ...]) -> dict[str, TorchDistribution]:
    """Wide Gaussians over w of this shape [T, Y, D]."""
    loc, scale = torch.randn(shape), 1 + torch.rand(shape)
    factor = torch.randn(*shape, shape[-1]).tril(-1) + torch.diag_embed(scale)
    root = torch.randn(*shape, 2)
    return {
        "diagonal": Normal(loc, scale).to_event(2),
        "full": MultivariateNormal(loc, scale_tril=factor).to_event(1),
        "low rank precision": LowRankPrecision(loc, scale**-2, root, 2),
    }


def conjugate(num_tasks: int = 4, query: int = 8) -> tuple[Any, Episodes]:
    model: Any = Pair("exact", model="linear_regression").learner().model
    return model, random_regressions(num_tasks=num_tasks, query=query)


def exact(model: Any, q: TorchDistribution, episodes: Episodes) -> Tensor:
    """The closed form for any Gaussian q, from its mean and covariance."""
    if isinstance(q, LowRankPrecision):
        root = q.root.flatten(1, 2)
        precision_matrix = torch.diag_embed(q.precision.flatten(1)) + root @ root.mT
        covariance = precision_matrix.inverse()
        x, observed = episodes.query_x, []
        for task in range(len(x)):
            kept = episodes.query_mask[task]
            design = torch.block_diag(*[x[task][kept]] * q.event_shape[0])
            noise = model.noise**2 * torch.eye(len(design))
            of_y = MultivariateNormal(
                design @ q.loc[task].flatten(), design @ covariance[task] @ design.mT + noise.to(design)
            )
            observed.append(of_y.log_prob(episodes.query_y[task][kept].mT.flatten()))
        return torch.stack(observed)
    return model.log_predictive(q, episodes).detach()


@pytest.mark.parametrize("family", ["diagonal", "full", "low rank precision"])
def test_on_a_conjugate_model_it_is_the_closed_form(family: str) -> None:
    """The proposal is the exact posterior there, so every single weight is the evidence."""
    model, episodes = conjugate()
    q = gaussians_over((4, *model.event_shape(episodes)))[family]
    estimate = estimated_joint(model, q, episodes, samples=200)
    torch.testing.assert_close(estimate.value, exact(model, q, episodes), rtol=0, atol=1e-9)
    assert bool(estimate.trusted.all()) and torch.equal(estimate.lower, estimate.upper)
    assert (estimate.effective_size > 199).all() and (estimate.pareto_k < 0.7).all()


def test_many_coordinates_take_the_thin_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, episodes = conjugate()
    q = gaussians_over((4, *model.event_shape(episodes)))["full"]
    monkeypatch.setattr(precision, "DENSE", 1)
    monkeypatch.setattr("pyro_metabayes.evidence.proposal.DENSE", 1)
    estimate = estimated_joint(model, q, episodes, samples=200)
    torch.testing.assert_close(estimate.value, exact(model, q, episodes), rtol=0, atol=1e-9)


def test_few_draws_of_q_overestimate_it() -> None:
    """What it replaces: an average over 30 draws of a wide q is nats too large."""
    model, episodes = conjugate(query=20)
    q = gaussians_over((4, *model.event_shape(episodes)))["diagonal"]
    few = log_mean_exp(log_likelihood(model, q.sample(Size((200, 30))), episodes), dim=1).mean(0)
    assert (exact(model, q, episodes) - few > 2).all()


COPIES = 32  # repetitions of each task, whose chains are independent


def annealed(stages: int) -> tuple[Tensor, Tensor]:
    """Lower and upper bound minus the closed form [COPIES, T]. The annealing starts at q, which does not use labels."""
    model, episodes = conjugate(query=2)
    q = gaussians_over((4, *model.event_shape(episodes)))["diagonal"]
    copies = torch.arange(4).repeat(COPIES)
    many, wide = episodes.tasks(copies), Normal(q.mean[copies], q.stddev[copies]).to_event(2)
    latent = latent_of(wide)
    with torch.no_grad():
        bounds = annealed_bounds(
            lambda z: log_likelihood(model, latent.at(z)[0], many), Target(model, latent, many).origin, stages
        )
    truth = exact(model, q, episodes)
    lower, upper = (bound.view(COPIES, 4) - truth for bound in bounds)
    return lower, upper


def standard_errors_from(expected: float, values: Tensor) -> Tensor:
    """(mean - expected) / standard error [T] of values [COPIES, T]."""
    return (values.mean(0) - expected) / (values.std(0) / COPIES**0.5)


def test_annealing_bounds_the_closed_form_from_both_sides() -> None:
    """In expectation, so tested at 5 standard errors; the bounds close with the number of temperatures.

    The weights are unbiased: E[exp(lower - log Z)] = 1. With other random numbers a right estimator fails with
    probability below 0.01.
    """
    gaps = []
    for stages in (8, 64):
        lower, upper = annealed(stages)
        assert (standard_errors_from(0, lower) < 5).all() and (standard_errors_from(0, upper) > -5).all()
        gaps.append((upper - lower).mean().item())
    assert gaps[1] < 0.3 * gaps[0]
    assert abs((lower + upper).mean().item() / 2) < 0.2
    assert (standard_errors_from(1, lower.exp()).abs() < 5).all() and (lower.exp().std(0) / COPIES**0.5 < 0.25).all()


def brute_force(model: Model, q: TorchDistribution, episodes: Episodes, draws: int = 100_000) -> tuple[Tensor, Tensor]:
    """Log of the average over draws of q [T], and its standard error [T]."""
    parts = [log_likelihood(model, q.sample(Size((10_000,))), episodes) for _ in range(draws // 10_000)]
    log_weights = torch.cat(parts)
    return log_mean_exp(log_weights), effective_size(log_weights) ** -0.5


def wide_q(head: str) -> tuple[Model, TorchDistribution, Episodes]:
    """A classifier with a wide q, and tasks with so few queries that plain draws of q suffice."""
    model = Pair("proto", "flat", head).learner().model
    episodes = random_tasks(num_tasks=3, query=1)
    return model, Normal(torch.randn(3, *model.event_shape(episodes)), 1.0).to_event(2), episodes


@pytest.mark.parametrize("head", HEADS)
def test_of_classes_it_is_the_average_over_very_many_draws(head: str) -> None:
    """At 5 standard errors of both, which are below 0.1 nats per task together."""
    model, q, episodes = wide_q(head)
    with torch.no_grad():
        estimate, (expected, error) = estimated_joint(model, q, episodes, 2000), brute_force(model, q, episodes)
    error = (error.square() + 1 / estimate.effective_size).sqrt()
    assert ((estimate.value - expected).abs() < 5 * error).all() and (error < 0.1).all()


@pytest.mark.parametrize("head", HEADS)
def test_of_untrusted_weights_the_bounds_are_annealed(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their noise was measured as at most 0.1 nats per task."""
    monkeypatch.setattr(joint_module, "TRUSTED_SIZE", 10_000)
    monkeypatch.setattr(joint_module, "MOST_STAGES", 64)
    model, q, episodes = wide_q(head)
    with torch.no_grad():
        estimate, (expected, error) = estimated_joint(model, q, episodes, 500), brute_force(model, q, episodes)
    assert not bool(estimate.trusted.any()) and not torch.equal(estimate.lower, estimate.upper)
    assert (estimate.lower < expected + 0.15 + error).all() and (estimate.upper > expected - 0.15 - error).all()
    assert (estimate.upper >= estimate.lower).all() and (estimate.upper - estimate.lower < 0.3).all()


def test_proposals_see_the_labels_in_the_span_of_the_query_features() -> None:
    """With more features than queries a linear head leaves the other directions as q has them."""
    model = Pair("proto", "flat", "linear").learner().model
    episodes = random_tasks(num_tasks=2, query=1, features=FEATURES)
    q = Normal(torch.zeros(2, *model.event_shape(episodes)), 1.0).to_event(2)
    with torch.no_grad():
        proposal = proposal_of(Target(model, latent_of(q), episodes))
    design = torch.nn.functional.pad(episodes.query_x, (0, 1), value=1.0)  # [T, Q, D + 1], Q = WAY < D + 1
    across = torch.linalg.svd(design).Vh[:, WAY:]  # directions that no query has
    mean = proposal.mean.unflatten(-1, (WAY, FEATURES + 1))
    assert (mean @ design.mT).abs().amax() > 0.01
    assert (mean @ across.mT).abs().amax() < 1e-9
    directions = across[:, :1].repeat(1, WAY, 1).flatten(1)  # [T, P]
    columns = proposal.root(torch.eye(directions.shape[1]).unsqueeze(1).expand(-1, 2, -1))  # R [P, T, P]
    covariance = torch.einsum("lti,ltj->tij", columns, columns)
    torch.testing.assert_close((covariance @ directions.unsqueeze(-1)).squeeze(-1), directions)
    assert (covariance.diagonal(dim1=-2, dim2=-1) < 0.99).any()


@pytest.mark.parametrize("guide", ["task_scale", "leo"])
def test_other_models_and_several_sites_have_it_too(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Joint of a scale and weights; likelihoods that depend on the support set."""
    monkeypatch.setattr(joint_module, "MOST_STAGES", 16)
    monkeypatch.setattr(annealing, "EQUILIBRATION", 16)
    pair = Pair(guide, model=guide)
    learner, episodes = pair.learner(), pair.tasks(2)
    evaluation = evaluate(learner, stream_of(episodes), EvalSettings(2, joint=True, joint_samples=300), progress=False)
    joint = {name: evaluation.metrics[name] for name in SCORES}
    assert all(np.isfinite(value) for value in joint.values())
    assert joint["joint_nll_lower"] <= joint["joint_nll"] <= joint["joint_nll_upper"]
    with torch.no_grad():
        q = learner.guide.posterior(episodes.observed())
        expected, _ = brute_force(learner.model, q, episodes, draws=20_000)
    nll = (-expected / episodes.query_mask.sum(-1)).mean().item()
    assert joint["joint_nll_lower"] - 0.05 < nll < joint["joint_nll_upper"] + 0.05


def test_of_a_point_estimate_it_is_the_nll() -> None:
    learner, episodes = Pair("proto", "flat").learner(), random_tasks(num_tasks=4)
    metrics = evaluate(learner, stream_of(episodes), EvalSettings(4, joint=True), progress=False).metrics
    assert metrics["joint_nll"] == pytest.approx(metrics["nll"], abs=1e-12) and metrics["joint_trusted"] == 1


def test_the_closed_form_is_used_where_there_is_one() -> None:
    model, episodes = conjugate()
    q = gaussians_over((4, *model.event_shape(episodes)))["full"]
    got: JointPredictive = joint_predictive(model, q, episodes, samples=200)
    assert torch.equal(got.value, model.log_predictive(q, episodes)) and (got.pareto_k == 0).all()


def test_without_being_asked_for_it_is_null_and_changes_no_other_score() -> None:
    pair = Pair("savi", "conditional")
    learner, stream = pair.learner(), stream_of(random_tasks(num_tasks=40))
    without, with_joint = (
        evaluate(learner, stream, EvalSettings(40, samples=5, joint=joint), progress=False) for joint in (False, True)
    )
    assert [without.metrics[name] for name in SCORES] == [None] * len(SCORES)
    assert not set(SCORES) & set(without.per_task) and set(SCORES) <= set(with_joint.per_task)
    others = {name: value for name, value in without.metrics.items() if name not in (*SCORES, "seconds")}
    assert {name: with_joint.metrics[name] for name in others} == others


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected eval\.joint_samples >= 200, got 10"):
        EvalSettings(joint_samples=10)


def test_a_diverged_posterior_has_no_number_and_raises_nothing() -> None:
    model = Pair("proto", "flat", "linear").learner().model
    episodes = random_tasks(num_tasks=2)
    q = Normal(torch.full((2, *model.event_shape(episodes)), torch.nan), 1.0, validate_args=False).to_event(2)
    with torch.no_grad(), pyro.validation_enabled(False):
        assert estimated_joint(model, q, episodes, 200).value.isnan().all()
