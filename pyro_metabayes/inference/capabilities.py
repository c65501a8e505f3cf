"""Capabilities: methods that some guides need and that not every model has, as protocols.

A guide lists the capabilities that it always needs in `requires`, and calls `require` for a capability that only a
setting needs. A model has a capability if it has all members of the protocol; otherwise building the guide fails.
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
    """Capability of a model whose prior is a separate module, chosen by `prior=`."""

    prior_over_weights: Prior


@runtime_checkable
class FollowsGuide(Protocol):
    """Capability of a prior that can be replaced by the posterior of the guide."""

    def follow(self, prediction: Callable[[Observed], TorchDistribution]) -> None:
        """Use `prediction`, a function from tasks without query labels to a distribution over w, as the prior."""


@runtime_checkable
class HasPrototypes(Protocol):
    def prototypes(self, observed: Observed) -> Tensor:
        """Compute weights of shape *W per task [T, *W] in closed form from the support set, such as class means."""


@runtime_checkable
class HasClassMeans(HasPrototypes, Protocol):
    def at_means(self, means: Tensor) -> Tensor:
        """Return the nearest-mean classifier with class means [..., C, D] as W weights per class [..., C, W]."""


@runtime_checkable
class HasClassTerm(Protocol):
    @property
    def has_class_term(self) -> bool:
        """Whether the logits have an additive term (bias) per class; otherwise `with_class_term` is not defined."""

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Return weights [..., T, C, W] (W per class) with the logits of w plus a term per class [..., T, C]."""


@runtime_checkable
class HasInitialPoint(Protocol):
    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Draw random weights of one task (shape *W), the start value of an initial point that a guide may learn."""


@runtime_checkable
class FromClassifier(Protocol):
    def of_classifier(self, weights: Tensor) -> Tensor:
        """Return weights w (shape *W) that predict like a cosine classifier with weight vectors [C, D] of C classes."""


@runtime_checkable
class LinearHead(Protocol):
    """Capability of a linear head, whose logits are logits_ic = scale * (v_c . x_i + b_c) for point i and class c."""

    scale: Tensor

    def rows(self, directions: Tensor, offsets: Tensor) -> Tensor:
        """Return W weights per class [..., C, W] with the given directions v [..., C, D] and offsets b [..., C]."""

    def design(self, x: Tensor) -> Tensor:
        """Return the design matrix phi [..., N, W] of points x [..., N, D]; weights w_c give logits w_c . phi_i."""


@runtime_checkable
class HasHead(Protocol):
    """Capability of a classifier whose latent w is the weights of a head."""

    head: nn.Module


@runtime_checkable
class StartsAtEstimates(Protocol):
    """Capability of a model or guide for linear mixed models whose training may start at closed-form estimates."""

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        """Set the parameters to these estimates, before training."""


@runtime_checkable
class HasQueryView(Protocol):
    """Capability of a model that replaces the logits outputs(w, query_x) as input of inner loops on the queries."""

    def num_seen(self, num_classes: int) -> int:
        """Return the number V of values per query that `query_view` returns, for tasks of num_classes classes."""

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """Return the input v [..., T, Q, V] of inner loops, and the map from a gradient in v to a gradient in w."""


@runtime_checkable
class HasBaseClasses(Protocol):
    @property
    def num_base_classes(self) -> int:
        """Number B of base classes, which all tasks have in addition to their own novel classes."""

    def base_weights(self, observed: Observed) -> Tensor:
        """Return the weights of the B base classes in each task, [T, B, W], with W weights per class."""


@runtime_checkable
class Conjugate(Protocol):
    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """Compute the exact posterior p(w | support) per task in closed form: batch [T], event [*W], the shape of w."""

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """Compute log p(y_query | x_query, support) per task [T] in nats, with w integrated out in closed form."""


@runtime_checkable
class IntegratesGaussian(Protocol):
    """Capability of a model, linear in w with Gaussian noise, that integrates over a Gaussian q(w) in closed form."""

    def predictive(self, q: TorchDistribution, observed: Observed) -> TorchDistribution:
        """Integrate p(y_i | x_i, w) q(w) over w per task and query i: batch [T, Q], event [Y] for Y outputs."""

    def log_predictive(self, q: TorchDistribution, episodes: Episodes) -> Tensor:
        """Compute the log of the integral over w of q(w) prod_i p(y_i | x_i, w) per task, for unmasked queries i."""


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
    """Return whether an object has all members of a capability; isinstance would miss parameters of modules."""
    return all(hasattr(part, name) for name in members(capability))  # type: ignore[arg-type]


def require(model: object, capability: type[Capability], by: str) -> Capability:
    """Check that a model has a capability, and return the model, typed as having it.

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
        raise UsageError(f"expected the model of the same name for {by}, got {name}; remove the setting model=")
    what, remedy = WORDS[capability]
    raise UsageError(f"expected a model with {what} for {by}, got {name}; {remedy}")


def linear_head(model: object, by: str) -> LinearHead:
    """Check that the head of a model is linear, and return the head.

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
