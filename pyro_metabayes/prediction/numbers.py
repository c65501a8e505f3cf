"""Predictions of a regression for one task: mean, standard deviation and 90% interval."""

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
    """Summary of the predictive distribution of Q queries with Y numbers per label, including the observation noise.

    All attributes have shape [Q, Y] and the unit of the labels.

    Attributes:
        mean: predictive mean.
        sd: predictive standard deviation.
        lower: lower end of the central 90% interval.
        upper: upper end of the central 90% interval.
    """

    mean: Tensor
    sd: Tensor
    lower: Tensor
    upper: Tensor


def predicted_numbers(model: Model, q: TorchDistribution, observed: Observed, num_samples: int) -> NumberPrediction:
    """Summarise the predictive distribution ∫ p(y | x, w) q(w) dw of each query of one task.

    The result is exact for linear models with Gaussian noise and a Gaussian q, and otherwise estimated from samples.

    Args:
        model: the model with the likelihood p(y | x, w).
        q: a distribution over the weights w, batch [1].
        observed: one task, with features as inputs.
        num_samples: number of draws of w, used without a closed form.

    Raises:
        UsageError: a prediction is not finite.
    """
    values = number_moments(model, q, observed, num_samples)
    if not all(bool(value.isfinite().all()) for value in values):
        raise UsageError("expected finite predictions, got infinity or NaN; scale the inputs as in training")
    return NumberPrediction(*(value.squeeze(0) for value in values))


def number_moments(
    model: Model, q: TorchDistribution, observed: Observed, num_samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute mean, sd, and lower and upper end of the 90% interval, each [T, Q, Y].

    The shape is that of T tasks with Q queries and Y numbers per label. Values may be NaN or infinite. The arguments
    are those of `predicted_numbers`.
    """
    if integrates(model, q):
        family: Any = innermost(model.predictive(q, observed))
        reach = family.icdf(torch.full_like(family.mean, 0.5 + INTERVAL / 2)) - family.mean
        return family.mean, family.stddev, family.mean - reach, family.mean + reach
    return _from_draws(innermost(model.likelihood(draws_of(q, num_samples), observed.query_x, observed)))


def integrates(model: Model, q: TorchDistribution) -> TypeGuard[IntegratesGaussian]:
    """Return whether the predictive distribution under q has a closed form: a normal q and a model with `predictive`.

    `model.canonical` must be true. A subclass with another `likelihood_of` may inherit a wrong `predictive`.
    """
    return model.canonical and has(model, IntegratesGaussian) and isinstance(innermost(q), Normal | MultivariateNormal)


def _from_draws(family: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Estimate mean, sd, and the ends of the central 90% interval of the predictive distribution.

    `family` is p(y | x, w_l), batch [L, T, Q], for L samples w_l, T tasks and Q queries. The mean is the average of
    E[y | x, w_l] over the samples. The sd and the ends come from labels drawn from p(y | x, w_l). The median of the
    drawn labels replaces an average that is not finite.
    """
    with drawing():
        y = family.sample(torch.Size((DRAWS_OF_LABELS,))).flatten(0, 1).double()
    lower, upper = (y.quantile(0.5 + sign * INTERVAL / 2, 0) for sign in (-1, 1))
    mean = family.mean.double().mean(0)
    return torch.where(mean.isfinite(), mean, y.median(0).values), y.std(0), lower, upper
