"""The few-shot classifier: a task's latent is the weights of its classes."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Categorical, TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from models.heads import Head
from models.priors import Prior
from pyro_metabayes.episodes import Observed, class_means


class Model(pyro_metabayes.Model):
    """p(y_i = c | x_i, w) = softmax_c(head(w, x_i)), w [C, W] from a prior that is a choice of its own.

    W is D for the cosine head and D + 1 for the linear one.
    """

    head: Head
    prior_over_weights: Prior

    def __init__(self, head: Head, prior: Prior) -> None:
        super().__init__()
        self.head = head
        self.prior_over_weights = prior

    def event_shape(self, observed: Observed) -> Size:
        num_features = observed.query_x.shape[-1]
        return Size((observed.num_classes, self.head.num_weights(num_features)))

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self.event_shape(observed))

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        return Categorical(logits=self.outputs(w, x))

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits [..., T, N, C]."""
        return self.head.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.head.outputs_and_pullback(w, x)

    def prototypes(self, observed: Observed) -> Tensor:
        """Weights [T, C, W] of the nearest class mean."""
        return self.head.prototypes(class_means(observed))
