"""Predictions of numbers, and those under Normal likelihoods."""

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
    """Predictions of numbers. A new family defines `cdf`, which must be 0 below the support.

    It overrides `standardised` or `mean` if its distribution has no finite mean or standard deviation. The `support` of
    the distribution determines whether labels are integers or continuous.
    """

    family: Any  # p(y | x, w_l), batch [L, T, Q, Y]

    @classmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        return cls(labels, mask, family)

    @classmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """logit_variance, information and information_error [T, Q].

        logit_variance is v, the variance over samples of `standardised`, mean over the components of a label.
        information is 1/2 log(1 + v), summed over the components: I(y; w) of a Gaussian mean with Gaussian noise, and
        an approximation for other families.
        """
        variance = cls.standardised(family).var(0)
        error = 0.5 * variance / (1 + variance) * math.sqrt(2 / (len(family.mean) - 1))  # of v: v sqrt(2 / (L - 1))
        return {
            "logit_variance": variance.mean(-1),
            "information": 0.5 * variance.log1p().sum(-1),
            "information_error": error.sum(-1),
        }

    @classmethod
    def standardised(cls, family: Any) -> Tensor:
        """The predicted mean divided by the predicted standard deviation [L, T, Q, Y]."""
        return family.mean / family.stddev

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """F_l(y) = P(label <= y | x, w_l) [L, T, Q, Y] for y [T, Q, Y]."""

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats; the log density of a continuous label."""
        return self.family.log_prob(self.labels).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Point prediction of y | x, w_l [L, T, Q, Y], in the unit of y."""
        return self.family.mean

    @cached_property
    def pit_bounds(self) -> Bounds:
        """The CDF F at y - 1 and at y [T, Q, Y] for integer labels; F(y) and F(y) for continuous labels."""
        up_to = self.cdf(self.labels).mean(0)
        return (self.cdf(self.labels - 1).mean(0) if is_discrete(self.family) else up_to), up_to


def is_discrete(family: Any) -> bool:
    """Whether the support of a distribution is discrete.

    Raises:
        UsageError: the distribution does not define its support.
    """
    try:
        return bool(family.support.is_discrete)
    except NotImplementedError:
        name = type(family).__name__
        raise UsageError(
            f"expected a likelihood with a `support`, got {name} without one; define {name}.support"
        ) from None


@register(Normal)
class RealPredictions(NumberPredictions):
    """Predictions of a Normal likelihood."""

    def cdf(self, y: Tensor) -> Tensor:
        """Phi((y - mean_l) / sd_l)."""
        return torch.special.ndtr((y - self.mean) / self.family.stddev)
