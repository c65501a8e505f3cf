"""Predictions of numbers for one task: mean, standard deviation and 90% interval."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import IntegratesGaussian, has
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.moments import draws_of
from pyro_metabayes.seeding import drawing

INTERVAL = 0.9
DRAWS_OF_LABELS = 40  # labels drawn for each draw of w, if quantiles have no closed form


class NumberPrediction(NamedTuple):
    """The predictive distribution of each query [Q, Y], noise included, in the unit of y.

    Attributes:
        mean: its mean.
        sd: its standard deviation.
        lower, upper: ends of its central 90% interval.
    """

    mean: Tensor
    sd: Tensor
    lower: Tensor
    upper: Tensor


def predicted_numbers(model: Model, q: TorchDistribution, observed: Observed, num_samples: int) -> NumberPrediction:
    """The predictive distribution, the integral of p(y | x, w) q(w), for the queries of one task (T = 1).

    It is exact for linear models with a Gaussian q.

    Args:
        model: the likelihood.
        q: a distribution over w, batch [1].
        observed: the task, with features as inputs.
        num_samples: draws of w, if there is no closed form.

    Raises:
        UsageError: a prediction is not finite.
    """
    values = number_moments(model, q, observed, num_samples)
    if not all(bool(value.isfinite().all()) for value in values):
        raise UsageError("expected inputs with finite predictions, got infinite ones or NaN; scale them as in training")
    return NumberPrediction(*(value.squeeze(0) for value in values))


def number_moments(
    model: Model, q: TorchDistribution, observed: Observed, num_samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, sd, lower and upper [T, Q, Y], without a check of their values. Args: as in `predicted_numbers`."""
    if integrates(model, q):
        family: Any = innermost(model.predictive(q, observed))
        reach = family.icdf(torch.full_like(family.mean, 0.5 + INTERVAL / 2)) - family.mean
        return family.mean, family.stddev, family.mean - reach, family.mean + reach
    return _from_draws(innermost(model.likelihood(draws_of(q, num_samples), observed.query_x, observed)))


def integrates(model: Model, q: TorchDistribution) -> TypeGuard[IntegratesGaussian]:
    """Whether predictions under q have the closed form of the model.

    This also needs `canonical`: a class that overrides `likelihood_of` inherits a closed form that is not valid for it.
    """
    return model.canonical and has(model, IntegratesGaussian) and isinstance(innermost(q), Normal | MultivariateNormal)


def _from_draws(family: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, sd, and ends of the INTERVAL of the predictive distribution.

    The mean is that of E[y | x, w_l] over the draws (if it is not finite, the median of drawn labels). The sd and the
    ends are those of labels drawn from p(y | x, w_l).
    """
    with drawing():
        y = family.sample(torch.Size((DRAWS_OF_LABELS,))).flatten(0, 1).double()
    lower, upper = (y.quantile(0.5 + sign * INTERVAL / 2, 0) for sign in (-1, 1))
    mean = family.mean.double().mean(0)
    return torch.where(mean.isfinite(), mean, y.median(0).values), y.std(0), lower, upper
