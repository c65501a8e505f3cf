"""Generalised linear regression in groups: 0 and 1, or counts, with effects that vary by group and shared effects."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import check_choice
from pyro_metabayes.models import hierarchical_regression
from pyro_metabayes.prior import Prior

FAMILIES = ("bernoulli", "poisson")
LARGEST = 15.0  # of the logarithm of a rate: a larger one overflows in single precision while training starts


class Model(pyro_metabayes.Model):
    """p(y_i | x_i, w) = Bernoulli(sigmoid(eta_i)) or Poisson(exp(eta_i)), eta_i = w z_i + beta v_i, x_i = (z_i, v_i).

    A generalised linear mixed model: w [Y, R] are the effects of a group, with a learned prior; beta [Y,
    D - R] is shared.

    Args:
        prior: prior over w.
        num_targets: Y.
        num_features: D.
        num_weights: R, the number of leading features whose effects vary by group.
        family: "bernoulli", labels 0 and 1, or "poisson", counts.
        observe: whose labels `forward` conditions on: "query", "support" or "all".

    Raises:
        UsageError: the labels are classes, or another family.
    """

    prior_over_weights: Prior

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_weights: int,
        family: str = "bernoulli",
        observe: str = "query",
    ) -> None:
        super().__init__(observe)
        check_choice("model.family", family, FAMILIES)
        self.family = family
        self.linear = hierarchical_regression.Model(prior, num_targets, num_features, num_weights, learn_noise=False)
        del self.linear.prior_over_weights  # it is a part of this model, under the name that settings use
        self.prior_over_weights = prior

    @property
    def beta(self) -> Tensor:
        """Weights [Y, D - R] that all groups share."""
        return self.linear.beta

    def event_shape(self, observed: Observed) -> Size:
        return self.linear.event_shape(observed)

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self.event_shape(observed))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        if self.family == "bernoulli":
            return Bernoulli(logits=outputs).to_event(1)
        return Poisson(outputs.clamp(max=LARGEST).exp()).to_event(1)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        return self.linear.initial_latent(num_classes, num_features)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """eta [..., T, N, Y]."""
        return self.linear.outputs(w, x)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.linear.outputs_and_pullback(w, x)
