"""Capabilities of models: protocols with methods that some guides need and only some models have.

A model has a capability if it has all members of the protocol. The attribute `requires` of a guide lists the
capabilities that the guide always needs. For a capability that only one setting needs, the guide calls `require`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol, TypeGuard, TypeVar, runtime_checkable

from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from typing_extensions import get_protocol_members

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.prior import Prior

Capability = TypeVar("Capability")
Pullback = Callable[[Tensor], Tensor]


@runtime_checkable
class HasPrior(Protocol):
    """Capability of a model with a prior that `prior=` chooses."""

    prior_over_weights: Prior


@runtime_checkable
class FollowsGuide(Protocol):
    """Capability of a prior that the posterior of the guide can replace."""

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Use the distribution `prediction(tasks without query labels)` over w as the prior."""


@runtime_checkable
class HasPrototypes(Protocol):
    def prototypes(self, observed: Observed) -> Tensor:
        """Compute weights [T, *W] in closed form from the support set, such as class means."""


@runtime_checkable
class HasClassMeans(HasPrototypes, Protocol):
    def at_means(self, means: Tensor) -> Tensor:
        """Return the weights [..., C, W] of the nearest-mean classifier with class means [..., C, D]."""


@runtime_checkable
class HasClassTerm(Protocol):
    @property
    def has_class_term(self) -> bool:
        """Whether the logits have an additive term (bias) per class, which `with_class_term` needs."""

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Return weights [..., T, C, W] whose logits are the logits of w plus a term per class [..., T, C]."""


@runtime_checkable
class HasInitialPoint(Protocol):
    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Return weights [*W] of one task, random or 0, as the start value of a learned initial point."""


@runtime_checkable
class FromClassifier(Protocol):
    def of_classifier(self, weights: Tensor) -> Tensor:
        """Return weights w [*W] that predict like a cosine classifier with class weights [C, D]."""


@runtime_checkable
class LinearHead(Protocol):
    """Capability of a linear head: logits_ic = scale * (v_c . x_i + b_c) for point i and class c."""

    scale: Tensor

    def rows(self, directions: Tensor, offsets: Tensor) -> Tensor:
        """Return the weights [..., C, W] with directions v [..., C, D] and offsets b [..., C]."""

    def design(self, x: Tensor) -> Tensor:
        """Return the design matrix phi [..., N, W] of points x [..., N, D]; the logits are w_c . phi_i."""


@runtime_checkable
class HasHead(Protocol):
    """Capability of a classifier with a head, whose weights are the latent w."""

    head: nn.Module


@runtime_checkable
class StartsAtEstimates(Protocol):
    """Capability of a model or guide for linear mixed models: start training at closed-form estimates."""

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        """Set the parameters to `estimates` before training."""


@runtime_checkable
class HasQueryView(Protocol):
    """Capability of a model with an input of inner loops on the queries that replaces the query logits."""

    def num_seen(self, num_classes: int) -> int:
        """Return the number V of values per query in `query_view`, for tasks of num_classes classes."""

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """Return the input v [..., T, Q, V] of inner loops, and a function from gradients in v to gradients in w."""


@runtime_checkable
class HasBaseClasses(Protocol):
    @property
    def num_base_classes(self) -> int:
        """Number of base classes, some or all of which every task has in addition to novel classes."""

    def base_weights(self, observed: Observed) -> Tensor:
        """Return the weights [T, B, W] of the B base classes of each task."""


@runtime_checkable
class Conjugate(Protocol):
    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """Compute the exact posterior p(w | support) in closed form, batch [T], event [*W]."""

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """Compute log p(y_query | x_query, support) [T] in nats in closed form, with w integrated out."""


@runtime_checkable
class IntegratesGaussian(Protocol):
    """Capability of a model that integrates over a Gaussian q(w) in closed form: linear in w with Gaussian noise."""

    def predictive(self, q: TorchDistribution, observed: Observed) -> TorchDistribution:
        """Compute ∫ p(y_i | x_i, w) q(w) dw per query i as a distribution: batch [T, Q], event [Y] for Y outputs."""

    def log_predictive(self, q: TorchDistribution, episodes: Episodes) -> Tensor:
        """Compute log ∫ prod_i p(y_i | x_i, w) q(w) dw [T] over the unmasked queries i."""


# For the error about a missing capability: a description, and what to do.
WORDS: dict[type, tuple[str, str]] = {
    HasPrior: ("a prior that can be chosen", "use another model="),
    HasPrototypes: ("class prototypes", "use another guide, or guide.initialisation=global if it has this setting"),
    HasClassMeans: ("class means", "use model=few_shot_classifier"),
    HasClassTerm: ("a term per class", "use model=few_shot_classifier"),
    HasInitialPoint: ("a random initial point", "use another guide"),
    HasHead: ("a head", "use model=few_shot_classifier"),
    FromClassifier: ("a conversion of classifier weights", "use model=few_shot_classifier"),
    HasQueryView: ("the method query_view", "use model=lwof"),
    HasBaseClasses: ("base classes", "use model=lwof"),
    Conjugate: ("an exact posterior", "use data=gaussian_mean, data=linear_regression or data=groups"),
}


members = cache(get_protocol_members)


def has(part: object, capability: type[Capability]) -> TypeGuard[Capability]:
    """Return whether an object has all members of a capability. Parameters and buffers of modules count as members."""
    return all(hasattr(part, name) for name in members(capability))  # type: ignore[arg-type]


def require(model: object, capability: type[Capability], by: str) -> Capability:
    """Check that a model has a capability, and return the model with the type of the capability.

    Args:
        model: any model.
        capability: a protocol of this file, or a protocol that a guide defines.
        by: the setting that needs the capability, for the message, such as "guide=exact".

    Raises:
        UsageError: the model lacks the capability.
    """
    if has(model, capability):
        return model
    name = type(model).__module__.removeprefix("pyro_metabayes.")
    if capability not in WORDS:  # defined by a guide with a model of the same name
        raise UsageError(f"expected model={by.removeprefix('guide=')} for {by}, got {name}; remove the setting model=")
    what, remedy = WORDS[capability]
    raise UsageError(f"expected a model with {what} for {by}, got {name}; {remedy}")


def linear_head(model: object, by: str) -> LinearHead:
    """Check that the head of a model is linear, and return the head.

    Args:
        model: any model.
        by: the setting that needs a linear head, for the message, such as "guide=lda".

    Raises:
        UsageError: the model has no linear head.
    """
    head = require(model, HasHead, by).head
    if has(head, LinearHead):
        return head
    raise UsageError(f"expected head=linear for {by}, got head={type(head).__name__.lower()}; set head=linear")
