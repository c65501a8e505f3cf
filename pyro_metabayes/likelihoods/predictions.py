"""Predictions of query labels, from which scores, calibration and spreads are computed, by family of the likelihood.

FAMILIES is the registry. To add a family, derive a class from ClassPredictions (classes.py), NumberPredictions
(numbers.py) or Predictions and decorate it with `@register(DISTRIBUTION)`. No other file needs a change.
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
from pyro_metabayes.prediction.pit import Bounds


@dataclass(frozen=True, eq=False)
class Predictions(ABC):
    """p(y | x, w_l) for L samples w_l and the queries of T tasks, and the labels; results are cached."""

    labels: Tensor  # [T, Q] classes, or [T, Q, Y] numbers
    mask: Tensor  # [T, Q], False for masked queries, which have no effect

    @classmethod
    @abstractmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        """The predictions of a likelihood.

        Args:
            family: the registered distribution, batch [L, T, Q], or [L, T, Q, Y] for labels that are numbers.
            labels: [T, Q] classes, or [T, Q, Y] numbers.
            mask: [T, Q], False for masked queries.
        """

    @classmethod
    @abstractmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """Variation of the predictions over the samples [T, Q], by name of the spread (`collapse.prior_spread`)."""

    @property
    @abstractmethod
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats; for a continuous label the log density."""

    @property
    def pit_bounds(self) -> Bounds | None:
        """P(label < y) and P(label <= y) of the mixture over samples [T, Q] or [T, Q, Y]; None for unordered labels."""
        return None


FAMILIES: dict[type[Distribution], type[Predictions]] = {}
P = TypeVar("P", bound=type[Predictions])


def register(family: type[Distribution]) -> Callable[[P], P]:
    """Class decorator that registers predictions for likelihoods of this distribution class and its subclasses."""

    def added(predictions: P) -> P:
        FAMILIES[family] = predictions
        return predictions

    return added


def registered(family: Distribution) -> type[Predictions]:
    """The entry of FAMILIES for the class of a distribution, or else for the nearest registered base class.

    Raises:
        UsageError: there is no such entry.
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
    """The predictions of a likelihood.

    Args:
        likelihood: p(y_i | x_i, w_l), batch [L, T, Q].
        y: labels of the queries, [T, Q] classes or [T, Q, Y] numbers.
        mask: [T, Q], False for masked queries.

    Returns:
        An object of the class that is registered for the family.

    Raises:
        UsageError: the family is not registered.
    """
    family = innermost(likelihood)
    return registered(family).of(family, y, mask)
