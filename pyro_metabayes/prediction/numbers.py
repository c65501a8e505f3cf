"""Predictions of numbers for one task: mean, standard deviation and interval."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import IntegratesGaussian
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.moments import draws_of
from pyro_metabayes.seeding import drawing

INTERVAL = 0.9
DRAWS_OF_LABELS = 40  # for each draw of w, where quantiles have no closed form


class NumberPrediction(NamedTuple):
    """Of the predictive distribution of each query [Q, Y], noise included; lower and upper hold 90% of it."""

    mean: Tensor
    sd: Tensor
    lower: Tensor
    upper: Tensor


def predicted_numbers(model: Model, q: TorchDistribution, observed: Observed, num_samples: int) -> NumberPrediction:
    """Integral of p(y | x, w) q(w) for the queries of one task, T = 1: exact for linear models under a Gaussian q.

    Args:
        model: makes the predictions.
        q: a distribution over w, batch [1].
        observed: the task, with features as inputs.
        num_samples: draws of w, where they are needed.

    Raises:
        UsageError: a prediction is not finite.
    """
    if integrates(model, q):
        family: Any = innermost(model.predictive(q, observed))
        reach = family.icdf(torch.full_like(family.mean, 0.5 + INTERVAL / 2)) - family.mean
        values = family.mean, family.stddev, family.mean - reach, family.mean + reach
    else:
        values = _from_draws(innermost(model.likelihood(draws_of(q, num_samples), observed.query_x, observed)))
    if not all(bool(value.isfinite().all()) for value in values):
        raise UsageError("expected inputs whose predictions are finite, got others; scale them as in training")
    return NumberPrediction(*(value.squeeze(0) for value in values))


def integrates(model: object, q: TorchDistribution) -> TypeGuard[IntegratesGaussian]:
    """Whether predictions under q have the closed form of the model.

    A class with another `likelihood_of` inherits the closed form, which is then not that of its likelihood.
    """
    closed = isinstance(model, IntegratesGaussian) and bool(getattr(model, "canonical", False))
    return closed and isinstance(innermost(q), Normal | MultivariateNormal)


def _from_draws(family: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From labels drawn from p(y | x, w_l), batch [L, T, Q, Y]; mean: that of the families, if there is one."""
    with drawing():
        y = family.sample(torch.Size((DRAWS_OF_LABELS,))).flatten(0, 1).double()
    lower, upper = (y.quantile(0.5 + sign * INTERVAL / 2, 0) for sign in (-1, 1))
    mean = family.mean.double().mean(0)
    return torch.where(mean.isfinite(), mean, y.median(0).values), y.std(0), lower, upper
