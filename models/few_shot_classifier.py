"""The few-shot classifier: the latent of a task holds the weights of its classes."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Categorical, TorchDistribution
from torch import Size, Tensor
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.heads import Head, Outputs
from pyro_metabayes.models.parts.feature_density import log_density
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """p(y_i = c | x_i, w) = softmax_c(head(w, x_i)), w [C, W] from the prior.

    Args:
        head: logits from weights and features; W is D for the cosine head and D + 1 for the linear one.
        prior: any prior over weights [C, W].
        observe: the points whose labels `forward` conditions on: "query", "support" or "all".
    """

    canonical = True
    head: Head
    prior_over_weights: Prior
    inner_step_size = 0.4  # Finn et al. (2017) for Omniglot; a step of 0.01 moves the logits by less than 0.2 nats

    def __init__(self, head: Head, prior: Prior, observe: str = "query") -> None:
        super().__init__(observe)
        self.head = head
        self.prior_over_weights = prior

    def event_shape(self, observed: Observed) -> Size:
        return self.head.event_shape(observed.num_classes, observed.query_x.shape[-1])

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self.event_shape(observed))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Categorical(logits=outputs)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits [..., T, N, C]."""
        return self.head.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.head.outputs_and_pullback(w, x)

    def outputs_at(self, w: Tensor) -> Outputs:
        """The function x -> outputs(w, x) (`pyro_metabayes/likelihoods/draws.py`, FixesWeights)."""
        return self.head.outputs_at(w)

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """The function x -> logits [L, T, N, C] (`pyro_metabayes/likelihoods/draws.py`, DrawsOutputs)."""
        return self.head.outputs_of_draws(loc, noise, square)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Random weights [C, W]."""
        return self.head.initial_weights(num_classes, num_features)

    def of_classifier(self, weights: Tensor) -> Tensor:
        """Weights [C, W] with which the head predicts like a cosine classifier with weights [C, D]."""
        return self.head.prototypes(functional.normalize(weights, dim=-1))

    def loss_range(self, observed: Observed) -> Tensor | None:
        """Bound on the range (largest minus smallest) of the cross-entropy of one point, in nats; None if unknown."""
        return self.head.loss_range(observed.num_classes) if self.canonical else None

    def log_density(self, w: Tensor, x: Tensor) -> Tensor | None:
        """log p(x_i | w) [..., T, N] (`parts/feature_density.py`); None if a derived class predicts in another way."""
        derived, own = ((part.outputs, part.likelihood_of, part.likelihood) for part in (type(self), Model))
        return log_density(self.head, w, x) if derived == own else None

    def prototypes(self, observed: Observed) -> Tensor:
        """Weights [T, C, W] that classify by the nearest class mean.

        Raises:
            UsageError: the tasks have no support points.
        """
        if not observed.support_x.shape[1]:
            raise UsageError(
                "expected a labelled support set for this guide, got task.shot=0; take one that needs none, such as "
                "guide=sib_rotation or guide=mean_field"
            )
        return self.at_means(class_means(observed))

    def at_means(self, means: Tensor) -> Tensor:
        """Weights [..., C, W] that classify by the nearest of the class means [..., C, D]."""
        return self.head.prototypes(means)

    @property
    def has_class_term(self) -> bool:
        return self.head.has_class_term

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        """Weights whose logits are those of w [..., T, C, W] plus term [..., T, C]."""
        return self.head.with_class_term(w, term)
