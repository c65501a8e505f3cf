"""The base class of models that have the outputs of another model, and a likelihood of their own."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.prior import Prior


class SameOutputs(pyro_metabayes.Model):
    """Base class of models with the latent, prior and outputs of another model; a subclass defines `likelihood_of`.

    Args:
        predictor: the other model, built with `prior`.
        prior: the prior of `predictor`. This prior becomes the submodule `prior_over_weights` of the new model, not of
            `predictor`.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).
    """

    prior_over_weights: Prior

    def __init__(self, predictor: pyro_metabayes.Model, prior: Prior, observe: str) -> None:
        super().__init__(observe)
        del predictor.prior_over_weights
        self.predictor, self.prior_over_weights = predictor, prior

    def event_shape(self, observed: Observed) -> Size:
        return self.predictor.event_shape(observed)

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self.event_shape(observed))

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        return self.predictor.initial_latent(num_classes, num_features)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return self.predictor.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.predictor.outputs_and_pullback(w, x)
