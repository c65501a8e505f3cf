"""Predictions of query labels, the input of scores and diagnostics, with one class per family of likelihoods.

FAMILIES maps classes of distributions to classes of predictions. A new family is a subclass of ClassPredictions
(classes.py), NumberPredictions (numbers.py) or Predictions with the decorator `@register(DISTRIBUTION)`. No other file
needs a change.
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
    """Predictions p(y | x, w_l) for the Q queries of T tasks under L samples w_l, with the true labels."""

    labels: Tensor  # [T, Q] classes, or [T, Q, Y] numbers
    mask: Tensor  # [T, Q], False for masked queries, which have no effect

    @classmethod
    @abstractmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        """Construct the predictions from a likelihood and the labels.

        Args:
            family: the likelihood without `to_event` and `mask`, batch [L, T, Q], or [L, T, Q, Y] for Y numbers per
                label.
            labels: [T, Q] classes, or [T, Q, Y] numbers.
            mask: [T, Q], False for masked queries.
        """

    @classmethod
    @abstractmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """Measure the variation of the predictions over samples of w; values [T, Q] per task and query, by name.

        The names are logit_variance, information, information_error and, for classes, disagreement.

        Args:
            family: the likelihood, as for `of`.
        """

    @property
    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log-likelihood log p(y_i | x_i, w_l) [L, T, Q] in nats; a log density for continuous labels."""

    @property
    def pit_bounds(self) -> Bounds | None:
        """Bounds of the randomised probability integral transform (PIT) per query; None for unordered classes.

        The bounds are P(label < y) and P(label <= y) at the labels y, under the mixture over samples of w. For
        continuous labels, both are P(label <= y).
        """
        return None


FAMILIES: dict[type[Distribution], type[Predictions]] = {}
P = TypeVar("P", bound=type[Predictions])


def register(family: type[Distribution]) -> Callable[[P], P]:
    """Class decorator: register a class of predictions for likelihoods of the distribution class `family`."""

    def added(predictions: P) -> P:
        FAMILIES[family] = predictions
        return predictions

    return added


def registered(family: Distribution) -> type[Predictions]:
    """Return the class of predictions registered for the class of a distribution, or for the nearest base class.

    Raises:
        UsageError: neither the class nor a base class is registered.
    """
    for base in type(family).__mro__:
        if base in FAMILIES:
            return FAMILIES[base]
    names = ", ".join(sorted(known.__name__ for known in FAMILIES))
    raise UsageError(
        f"expected a likelihood of a registered family ({names}), got {type(family).__name__}; register a class of "
        "predictions for this family (pyro_metabayes/likelihoods/predictions.py)"
    )


def predictions_of(likelihood: TorchDistribution, y: Tensor, mask: Tensor) -> Predictions:
    """Construct the predictions from a likelihood and the labels, by the class registered for the family.

    Args:
        likelihood: p(y_i | x_i, w_l) for L samples w_l, T tasks and Q queries, batch [L, T, Q].
        y: labels of the queries, [T, Q] classes or [T, Q, Y] numbers.
        mask: [T, Q], False for masked queries.

    Raises:
        UsageError: the family is not registered.
    """
    family = innermost(likelihood)
    return registered(family).of(family, y, mask)
