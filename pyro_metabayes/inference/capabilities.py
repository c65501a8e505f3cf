"""What one family of guides asks of some models, beside what every model has.

A guide names the capabilities that it needs in `requires`, or asks for one that a setting needs with `require`: a model
without it is refused when the guide is built. A model has a capability by having its members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prior import Prior

Capability = TypeVar("Capability")
Pullback = Callable[[Tensor], Tensor]


@runtime_checkable
class HasPrior(Protocol):
    """Its prior is a choice of its own."""

    prior_over_weights: Prior


@runtime_checkable
class FollowsGuide(Protocol):
    """A prior that is what the guide predicts with."""

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Be this function of what is observed from now on."""


@runtime_checkable
class HasPrototypes(Protocol):
    def prototypes(self, observed: Observed) -> Tensor:
        """The latent [T, *W] that the support set suggests before any inference: class means in a classifier."""


@runtime_checkable
class HasInitialPoint(Protocol):
    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """A random latent [*W] where descent can start, which a guide may go on to learn."""


@runtime_checkable
class FromClassifier(Protocol):
    def of_classifier(self, weights: Tensor) -> Tensor:
        """The latent [*W] that predicts as a cosine classifier with weights [C, D] does."""


@runtime_checkable
class HasQueryView(Protocol):
    """What an inner loop on the queries sees of them is more, or less, than outputs(w, query_x)."""

    def num_seen(self, num_classes: int) -> int:
        """How many numbers it sees of each query, in tasks of so many classes."""

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """What it sees [..., T, Q, num_seen], and the function from a cotangent on that to one on w [..., T, *W]."""


@runtime_checkable
class HasBaseClasses(Protocol):
    @property
    def num_base_classes(self) -> int:
        """How many classes are known beside those of each task."""

    def base_weights(self, observed: Observed) -> Tensor:
        """Weights [T, B, W] of the classes that are known beside those of each task."""


@runtime_checkable
class Conjugate(Protocol):
    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """p(w | support): batch [T], event [*W]."""

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """log p(y_query | x_query, support) [T], in nats."""


# What a message says of a capability, and what to do where it is missing.
WORDS: dict[type, tuple[str, str]] = {
    HasPrior: ("a prior of its own choice", "take another model="),
    HasPrototypes: ("class prototypes", "take another guide, or guide.initialisation=global where it has that"),
    HasInitialPoint: ("a random initial point", "take another guide"),
    FromClassifier: ("classes whose weights are known", "take model=few_shot_classifier"),
    HasQueryView: ("a view of its queries", "take model=lwof"),
    HasBaseClasses: ("base classes", "take model=lwof"),
    Conjugate: ("an exact posterior", "take data=gaussian_mean, data=linear_regression or data=groups"),
}


def require(model: object, capability: type[Capability], by: str) -> Capability:
    """The model, known to have the capability.

    Args:
        model: any model.
        capability: one of the protocols of this file, or of a guide's own.
        by: what needs it, for the message, such as "guide=exact".

    Raises:
        UsageError: the model does not have it.
    """
    if isinstance(model, capability):
        return model
    name = type(model).__module__.removeprefix("pyro_metabayes.")
    if capability not in WORDS:  # a guide's own, of a model that is its own
        raise UsageError(f"expected the model of the same name for {by}, got {name}; leave model= as the guide sets it")
    what, remedy = WORDS[capability]
    raise UsageError(f"expected a model with {what} for {by}, got {name}; {remedy}")
