"""Is the log density of a Delta part of log q wherever log q is computed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import Delta, Normal, TorchDistribution
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_metabayes.inference.divergences import closed_form_kl, differentiable_divergence
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.importance_weighted import ImportanceWeighted
from pyro_metabayes.objectives.monte_carlo import MonteCarlo
from tests.pairs import Pair

TASKS, ROWS, WIDTH = 3, 2, 4
FORMS = ("event", "independent", "masked", "expanded", "masked_independent")
OBJECTIVES: dict[str, Callable[[int], Any]] = {
    "sampled": lambda particles: Elbo(particles, kl="sampled"),
    "analytic": lambda particles: Elbo(particles, kl="analytic"),
    "convexity": lambda particles: Elbo(particles, kl="convexity"),
    "importance_weighted": ImportanceWeighted,
}
MASK = torch.tensor([True, False, True])


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def delta_of(form: str, v: Tensor, density: Tensor) -> tuple[TorchDistribution, Tensor]:
    """A Delta with batch [T] and event [R, W], and its log density [T]; density [T]."""
    rows = density.unsqueeze(-1).expand(TASKS, ROWS) / ROWS
    match form:
        case "event":
            return Delta(v, density, event_dim=2), density
        case "independent":
            return Delta(v, rows, event_dim=1).to_event(1), density
        case "masked":
            return Delta(v, density, event_dim=2).mask(MASK), density * MASK
        case "expanded":
            return Delta(v[:1], density[:1], event_dim=2).expand([TASKS]), density[:1].expand(TASKS)
    return Delta(v, rows, event_dim=1).to_event(1).mask(MASK), density * MASK


def programs(q: TorchDistribution, mask: Tensor | None) -> tuple[Callable[..., None], Callable[..., None]]:
    """A model with prior N(0.3, 2) and one label per task, and its guide. `mask` masks the latent in both."""

    def latent(distribution: TorchDistribution, kl_weight: float) -> Tensor:
        scaled, masked = poutine.scale(scale=kl_weight), poutine.mask(mask=True if mask is None else mask)
        with pyro.plate("task", TASKS, dim=-1), scaled, masked:
            return pyro.sample("w", distribution)

    def model(data: Tensor, kl_weight: float = 1.0) -> None:
        w = latent(Normal(0.3, 2.0).expand([TASKS, ROWS, WIDTH]).to_event(2), kl_weight)
        with pyro.plate("task_again", TASKS, dim=-1):
            pyro.sample("y", Normal(w.sum((-1, -2)), 1.0), obs=data)

    def guide(data: Tensor, kl_weight: float = 1.0) -> None:
        latent(q, kl_weight)

    return model, guide


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    name=st.sampled_from(sorted(OBJECTIVES)),
    particles=st.sampled_from([1, 3]),
    kl_weight=st.sampled_from([1.0, 0.1]),
    masked=st.booleans(),
    density=st.lists(st.floats(-20, 20), min_size=TASKS, max_size=TASKS),
)
def test_every_objective_reads_it(
    form: str, name: str, particles: int, kl_weight: float, masked: bool, density: list[float]
) -> None:
    """loss = kl_weight (log q - log p(w)) - log p(y | w), since all draws are equal; Trace_ELBO computes the same."""
    v, y = torch.linspace(-1, 1, TASKS * ROWS * WIDTH).view(TASKS, ROWS, WIDTH), torch.ones(TASKS)
    q, log_q = delta_of(form, v, torch.tensor(density))
    model, guide = programs(q, MASK if masked else None)
    loss = OBJECTIVES[name](particles).differentiable_loss(model, guide, y, kl_weight=kl_weight)
    divergence = log_q - Normal(0.3, 2.0).log_prob(q.mean).sum((-1, -2))
    evidence = Normal(q.mean.sum((-1, -2)), 1.0).log_prob(y)
    expected = kl_weight * (divergence * (MASK if masked else 1)).sum() - evidence.sum()
    torch.testing.assert_close(loss, expected)
    assert Trace_ELBO().loss(model, guide, y, kl_weight=kl_weight) == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("divergence", [closed_form_kl, differentiable_divergence])
def test_the_divergences_read_it(form: str, divergence: Callable[..., Tensor]) -> None:
    v = torch.randn(TASKS, ROWS, WIDTH)
    q, log_q = delta_of(form, v, torch.tensor([1.0, -2.0, 3.0]))
    p = Normal(0.3, 2.0).expand([TASKS, ROWS, WIDTH]).to_event(2)
    torch.testing.assert_close(divergence(q, p), log_q - p.log_prob(q.mean))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("prior", ["flat", "gaussian"])
def test_llama_has_one_loss_under_both_bounds(prior: str, particles: int) -> None:
    """Terms and gradients of elbo and importance_weighted are equal; monte_carlo has no KL and no correction."""
    pair = Pair("llama", prior, "linear", settings={"num_steps": 2, "step_size": 0.1, "weight": 1.0})
    learner, episodes = pair.learner(), pair.tasks()
    gradients = []
    terms = [
        objective(particles).terms(learner.model, learner.guide, episodes) for objective in (Elbo, ImportanceWeighted)
    ]
    for of_objective in terms:
        learner.zero_grad()
        of_objective.loss.backward()
        gradients.append([value.grad.clone() for value in learner.parameters() if value.grad is not None])
    for name in ("loss", "log_likelihood", "kl"):
        torch.testing.assert_close(getattr(terms[1], name), getattr(terms[0], name))
    torch.testing.assert_close(gradients[1], gradients[0])
    predictive = MonteCarlo(particles).terms(learner.model, learner.guide, episodes)
    torch.testing.assert_close(predictive.loss, -terms[0].log_likelihood)
