"""Predictions of query labels, by the family of the likelihood: what scores, calibration and spreads are computed from.

FAMILIES is the registry. To add a family, derive a class from ClassPredictions (classes.py), NumberPredictions
(numbers.py) or Predictions and decorate it with `@register(DISTRIBUTION)`; nothing else is edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.prediction.averages import log_mean_exp
from pyro_metabayes.prediction.pit import Bounds


@dataclass(frozen=True, eq=False)
class Predictions(ABC):
    """p(y | x, w_l) for L samples w_l and the queries of T tasks, with their labels; quantities are computed once."""

    labels: Tensor  # [T, Q] classes, or [T, Q, Y] numbers
    mask: Tensor  # [T, Q], True for a query that counts

    @classmethod
    @abstractmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        """The predictions of a likelihood.

        Args:
            family: the registered distribution, batch [L, T, Q], or [L, T, Q, Y] for labels that are numbers.
            labels: [T, Q] classes, or [T, Q, Y] numbers.
            mask: [T, Q], True for a query that counts.
        """

    @classmethod
    @abstractmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """How much predictions vary over the samples, by the names of collapse metrics: each [T, Q]."""

    @property
    @abstractmethod
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats; the density of a number."""

    @property
    def joint_log_prob(self) -> Tensor:
        """log (1/L) sum_l prod_i p(y_i | x_i, w_l) [T], over the queries that count, in nats."""
        return log_mean_exp((self.log_prob * self.mask).sum(-1))

    @property
    def pit_bounds(self) -> Bounds | None:
        """F(y-) and F(y) of the mixture over the samples, [T, Q] or [T, Q, Y]; None where labels have no order."""
        return None


FAMILIES: dict[type[Distribution], type[Predictions]] = {}
P = TypeVar("P", bound=type[Predictions])


def register(family: type[Distribution]) -> Callable[[P], P]:
    """Class decorator: the predictions of a likelihood of this distribution class, or of a subclass of it."""

    def added(predictions: P) -> P:
        FAMILIES[family] = predictions
        return predictions

    return added


def registered(family: Distribution) -> type[Predictions]:
    """The entry of FAMILIES for a distribution: that of its class, or of the nearest base class.

    Raises:
        UsageError: there is none.
    """
    for base in type(family).__mro__:
        if base in FAMILIES:
            return FAMILIES[base]
    names = ", ".join(sorted(known.__name__ for known in FAMILIES))
    raise UsageError(
        f"expected a likelihood of a family in pyro_metabayes.likelihoods.predictions.FAMILIES ({names}), got "
        f"{type(family).__name__}; register its predictions"
    )


def predictions_of(likelihood: TorchDistribution, y: Tensor, mask: Tensor) -> Predictions:
    """The predictions that a likelihood makes.

    Args:
        likelihood: p(y_i | x_i, w_l), batch [L, T, Q].
        y: labels of the queries, [T, Q] classes or [T, Q, Y] numbers.
        mask: [T, Q], True for a query that counts.

    Returns:
        Predictions of the class that is registered for the family.

    Raises:
        UsageError: the family is not registered.
    """
    family = innermost(likelihood)
    return registered(family).of(family, y, mask)
