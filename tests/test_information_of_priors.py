"""A prior is called collapsed if, and only if, labels carry no information about w."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyro.distributions import Categorical, Normal
from torch import Tensor

from pyro_metabayes.diagnostics.collapse import collapse_metrics, posterior_outputs
from pyro_metabayes.diagnostics.collapse_metrics import COLLAPSED_NATS, summary
from pyro_metabayes.likelihoods.predictions import registered
from tests.pairs import Pair, random_regressions, random_tasks

DRAWS = 2000


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def information_of(likelihood: Any) -> tuple[Tensor, Tensor]:
    spread = registered(likelihood).spread(likelihood)
    return spread["information"], spread["information_error"]


def classifier(head: str, loc: float, scale: float) -> Any:
    learner: Any = Pair("mean_field", "gaussian", head).learner()
    with torch.no_grad():
        learner.model.prior_over_weights.loc.fill_(loc)
        learner.model.prior_over_weights.log_scale.fill_(math.log(scale))
    return learner


def test_an_uninformative_prior_of_tiny_spread_is_collapsed() -> None:
    """Logits near 0 under a linear head: the most probable class differs between draws, the predictions do not."""
    metrics = collapse_metrics(classifier("linear", 0.0, 1e-3), random_tasks(num_tasks=10).observed(), 100)
    assert metrics["collapsed"] is True and metrics["prior_information"] < 1e-3


def test_an_uninformative_prior_over_directions_is_not() -> None:
    """Under a cosine head the tiniest spread around 0 is a spread of all directions."""
    learner = classifier("cosine", 0.0, 1e-6)
    learner.model.head.scale.data.fill_(10.0)
    metrics = collapse_metrics(learner, random_tasks(num_tasks=10).observed(), 100)
    assert metrics["collapsed"] is False and metrics["prior_information"] > 1


def test_a_correct_narrow_prior_of_a_regression_is_not_collapsed() -> None:
    """w ~ N(0, 0.05^2), noise 1, 75 queries: no mean moves much, but the labels together tell 0.094 nats."""
    learner: Any = Pair("exact", model="gaussian_mean").learner()
    with torch.no_grad():
        learner.model.prior_over_weights.log_scale.fill_(math.log(0.05))
        learner.model._noise = 1.0
    episodes = random_regressions(num_tasks=4, query=75, features=1, targets=1, whole=True)
    learner.model._shape = torch.Size((1, 1))
    metrics = collapse_metrics(learner, episodes.observed(), DRAWS)
    expected = 75 / 2 * math.log1p(0.05**2)
    assert metrics["prior_information"] == pytest.approx(expected, rel=0.1) and expected > COLLAPSED_NATS
    assert metrics["collapsed"] is False and metrics["logit_sd"] < 0.1


def test_one_moving_column_among_69_is_seen() -> None:
    """The logit of one class has sd 1: an average over 69 classes hides it, the information does not."""
    logits = torch.zeros(DRAWS, 1, 75, 69)
    logits[..., 0] = 3.0 + torch.randn(DRAWS, 1, 1)
    family = Categorical(logits=logits)
    spread = registered(family).spread(family)
    information, _ = information_of(family)
    assert spread["logit_variance"].mean().sqrt() < 0.15
    assert information.sum() > 20 * COLLAPSED_NATS


def test_the_information_of_classes_is_that_of_a_quadrature() -> None:
    """Two classes, logit z ~ N(0, 1): I = H[E p] - E H[p] on a fine grid; 30 draws have no bias."""
    grid = torch.linspace(-8, 8, 4001)
    weight = Normal(0.0, 1.0).log_prob(grid).exp()
    weight = weight / weight.sum()
    entropy = Categorical(logits=torch.stack((grid, torch.zeros_like(grid)), -1)).entropy()
    expected = math.log(2) - (weight * entropy).sum().item()
    z = torch.randn(30, 4000)
    logits = torch.stack((z, torch.zeros_like(z)), -1).unsqueeze(2)  # [L, T, Q = 1, C]
    information, error = information_of(Categorical(logits=logits))
    assert information.mean().item() == pytest.approx(expected, rel=0.03)
    assert error.square().mean().sqrt().item() == pytest.approx(information.std().item(), rel=0.35)


def test_the_information_of_numbers_is_that_of_the_gaussian_channel() -> None:
    means = 0.7 * torch.randn(50, 3000, 1, 2)
    information, error = information_of(Normal(means, 0.5))
    expected = 2 * 0.5 * math.log1p((0.7 / 0.5) ** 2)
    assert information.mean().item() == pytest.approx(expected, rel=0.02)
    assert error.mean().item() >= 0.9 * information.std().item()  # the sum of errors of the two numbers is a bound


def test_a_posterior_that_is_practically_a_point_is_collapsed_beside_a_living_prior() -> None:
    learner, episodes = classifier("linear", 0.0, 1.0), random_tasks(num_tasks=5)
    with torch.no_grad():
        learner.guide.log_scale.fill_(-9.0)
        q = learner.guide.posterior(episodes.observed())
        metrics = summary(posterior_outputs(learner, episodes.observed(), q, 50))
    assert metrics["posterior_collapsed"] is True and metrics["posterior_information"] < 1e-3
    both = collapse_metrics(learner, episodes, 50)
    assert both["collapsed"] is False and both["posterior_collapsed"] is True
