"""Capabilities: methods that some guides need and that not every model has.

A guide lists the capabilities that it always needs in `requires`, and calls `require` for one that a setting needs. A
model without it is refused when the guide is built. A model has a capability if it has the members of the protocol.
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
    """The prior is a separate module, chosen by `prior=`."""

    prior_over_weights: Prior


@runtime_checkable
class FollowsGuide(Protocol):
    """A prior that equals the posterior with which the guide predicts."""

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Use this function of the observed part of tasks as the prior from now on."""


@runtime_checkable
class HasPrototypes(Protocol):
    def prototypes(self, observed: Observed) -> Tensor:
        """A latent [T, *W] computed directly from the support set: class means in a classifier."""


@runtime_checkable
class HasClassMeans(HasPrototypes, Protocol):
    def at_means(self, means: Tensor) -> Tensor:
        """The latent [..., C, W] of the classifier by the nearest of the class means [..., C, D]."""


@runtime_checkable
class HasClassTerm(Protocol):
    @property
    def has_class_term(self) -> bool:
        """Whether the head has an additive term per class; otherwise `with_class_term` is not defined."""

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """The latent whose logits are those of w [..., T, C, W] plus `term` [..., T, C]."""


@runtime_checkable
class HasInitialPoint(Protocol):
    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """A random latent [*W] as an initial point, which a guide may learn."""


@runtime_checkable
class FromClassifier(Protocol):
    def of_classifier(self, weights: Tensor) -> Tensor:
        """The latent [*W] with the predictions of a cosine classifier with weights [C, D]."""


@runtime_checkable
class LinearHead(Protocol):
    """A head with logits_ic = scale * (v_c . x_i + b_c)."""

    scale: Tensor

    def rows(self, directions: Tensor, offsets: Tensor) -> Tensor:
        """The weights w [..., C, W] of directions v [..., C, D] and offsets b [..., C]."""

    def design(self, x: Tensor) -> Tensor:
        """The design matrix phi [..., N, W] with logits_ic = w_c . phi_i, for points x [..., N, D]."""


@runtime_checkable
class HasHead(Protocol):
    """A classifier whose latent is the weights of a head; `linear_head` checks that the head is linear."""

    head: nn.Module


@runtime_checkable
class StartsAtEstimates(Protocol):
    """A model or guide of a linear mixed model, whose training may start at closed-form estimates."""

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        """Before training, set the parameters to these estimates."""


@runtime_checkable
class HasQueryView(Protocol):
    """A model with a `query_view`, which inner loops on the queries use instead of outputs(w, query_x)."""

    def num_seen(self, num_classes: int) -> int:
        """The width V of the view of one query, in tasks of num_classes classes."""

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """The view [..., T, Q, V], and its pullback: from a cotangent of the view to one of w [..., T, *W]."""


@runtime_checkable
class HasBaseClasses(Protocol):
    @property
    def num_base_classes(self) -> int:
        """Number of base classes, which tasks have in addition to their novel classes."""

    def base_weights(self, observed: Observed) -> Tensor:
        """Weights [T, B, W] of the base classes."""


@runtime_checkable
class Conjugate(Protocol):
    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """p(w | support): batch [T], event [*W]."""

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """log p(y_query | x_query, support) [T], in nats."""


@runtime_checkable
class IntegratesGaussian(Protocol):
    """Outputs linear in w with Gaussian noise: predictions under a Gaussian over w need no draws."""

    def predictive(self, q: TorchDistribution, observed: Observed) -> TorchDistribution:
        """Integral of p(y_i | x_i, w) q(w) for each query: batch [T, Q], event [Y]."""

    def log_predictive(self, q: TorchDistribution, episodes: Episodes) -> Tensor:
        """log of the integral of prod_i p(y_i | x_i, w) q(w) [T], over the unmasked queries, in nats."""


# For the error about a missing capability: a description, and what to do.
WORDS: dict[type, tuple[str, str]] = {
    HasPrior: ("a prior that can be chosen", "use another model="),
    HasPrototypes: ("class prototypes", "use another guide, or guide.initialisation=global if it has this setting"),
    HasClassMeans: ("classes that are given by their means", "use model=few_shot_classifier"),
    HasClassTerm: ("a term per class", "use model=few_shot_classifier"),
    HasInitialPoint: ("a random initial point", "use another guide"),
    HasHead: ("a head", "use model=few_shot_classifier"),
    FromClassifier: ("classes whose weights are known", "use model=few_shot_classifier"),
    HasQueryView: ("a view of its queries", "use model=lwof"),
    HasBaseClasses: ("base classes", "use model=lwof"),
    Conjugate: ("an exact posterior", "use data=gaussian_mean, data=linear_regression or data=groups"),
}


_members = cache(get_protocol_members)


def has(part: object, capability: type[Capability]) -> TypeGuard[Capability]:
    """Whether the part has all members; from Python 3.12 on `isinstance` misses parameters and modules of torch."""
    return all(hasattr(part, name) for name in _members(capability))  # type: ignore[arg-type]


def require(model: object, capability: type[Capability], by: str) -> Capability:
    """The model, typed as having the capability.

    Args:
        model: any model.
        capability: a protocol of this file, or one that a guide defines.
        by: the setting that needs the capability, for the message, such as "guide=exact".

    Raises:
        UsageError: the model lacks the capability.
    """
    if has(model, capability):
        return model
    name = type(model).__module__.removeprefix("pyro_metabayes.")
    if capability not in WORDS:  # defined by a guide with a model of the same name
        raise UsageError(f"expected the model of the same name for {by}, got {name}; do not change model= of the guide")
    what, remedy = WORDS[capability]
    raise UsageError(f"expected a model with {what} for {by}, got {name}; {remedy}")


def linear_head(model: object, by: str) -> LinearHead:
    """The head of the model, typed as linear.

    Args:
        model: any model.
        by: the setting that needs a linear head, for the message, such as "guide=lda".

    Raises:
        UsageError: the model has no head, or its head is not linear.
    """
    head = require(model, HasHead, by).head
    if has(head, LinearHead):
        return head
    raise UsageError(f"expected head=linear for {by}, got head={type(head).__name__.lower()}; set head=linear")
