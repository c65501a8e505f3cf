"""Predictions of numbers: a base class for likelihoods of numbers, and the predictions under Normal likelihoods."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.predictions import Predictions, register
from pyro_metabayes.prediction.pit import Bounds


@dataclass(frozen=True, eq=False)
class NumberPredictions(Predictions):
    """Predictions of numbers under L draws of w.

    A subclass for a new family defines `cdf`, with value 0 below the support. For a family without finite mean or
    standard deviation, the subclass also overrides `mean`, `standardised` or both. Labels are integers if the `support`
    of the distribution is discrete, else continuous.
    """

    family: Any  # p(y | x, w_l), batch [L, T, Q, Y]

    @classmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        return cls(labels, mask, family)

    @classmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """Measure the variation of the predictions over samples of w; values [T, Q] per task and query, by name.

        Let v be the variance over samples of the standardised mean (`standardised`) of a label component.

        logit_variance: mean of v over the components.
        information: sum of 1/2 log(1 + v) over the components, in nats. This is the mutual information I(y; w) for a
            Gaussian mean with Gaussian noise, and an approximation for other families.
        information_error: bound on the standard error of information, the sum of the errors of the components.
        """
        variance = cls.standardised(family).var(0)
        # The standard error of v is v sqrt(2 / (L - 1)).
        error = 0.5 * variance / (1 + variance) * math.sqrt(2 / (len(family.mean) - 1))
        return {
            "logit_variance": variance.mean(-1),
            "information": 0.5 * variance.log1p().sum(-1),
            "information_error": error.sum(-1),
        }

    @classmethod
    def standardised(cls, family: Any) -> Tensor:
        """Return the predicted mean divided by the predicted sd [L, T, Q, Y] (samples, tasks, queries, components)."""
        return family.mean / family.stddev

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """Compute the CDF P(label <= y | x, w_l) [L, T, Q, Y] of L samples w_l at values y [T, Q, Y]."""

    @cached_property
    def log_prob(self) -> Tensor:
        """Log-likelihood log p(y_i | x_i, w_l) [L, T, Q] in nats; a log density for continuous labels."""
        return self.family.log_prob(self.labels).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Predicted mean (or median) [L, T, Q, Y] per sample, task, query and label component, in the unit of y."""
        return self.family.mean

    @cached_property
    def pit_bounds(self) -> Bounds:
        """Bounds [T, Q, Y] of the probability integral transform (PIT) at the labels y, per label component.

        F is the CDF averaged over samples. The bounds are F(y - 1) and F(y) for integers, and F(y) twice for continuous
        labels.
        """
        up_to = self.cdf(self.labels).mean(0)
        return (self.cdf(self.labels - 1).mean(0) if is_discrete(self.family) else up_to), up_to


def is_discrete(family: Any) -> bool:
    """Return whether the support of a distribution is discrete.

    Raises:
        UsageError: the distribution has no attribute `support`.
    """
    try:
        return bool(family.support.is_discrete)
    except NotImplementedError:
        name = type(family).__name__
        raise UsageError(
            f"expected a likelihood with the attribute support, got {name} without support; define {name}.support"
        ) from None


@register(Normal)
class RealPredictions(NumberPredictions):
    """Predictions under a Normal likelihood."""

    def cdf(self, y: Tensor) -> Tensor:
        """Compute the CDF Phi((y - mean_l) / sd_l) [L, T, Q, Y] of L samples w_l at values y [T, Q, Y]."""
        return torch.special.ndtr((y - self.mean) / self.family.stddev)
