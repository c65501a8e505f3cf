"""Generalised linear regression in groups, for binary labels or counts, with group effects and shared effects."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Tensor

from pyro_metabayes.build import FromSource
from pyro_metabayes.errors import check_choice
from pyro_metabayes.models import hierarchical_regression
from pyro_metabayes.models.parts.same_outputs import SameOutputs
from pyro_metabayes.prior import Prior

FAMILIES = ("bernoulli", "poisson")
LARGEST = 15.0  # upper bound on the log rate: larger values overflow in single precision early in training


class Model(SameOutputs):
    """p(y_i | x_i, w) = Bernoulli(sigmoid(eta_i)) or Poisson(exp(eta_i)), eta_i = w z_i + beta v_i, x_i = (z_i, v_i).

    A generalised linear mixed model: w [Y, R] are the effects of a group, with a learned prior; beta [Y,
    D - R] is shared. With `row_offsets` the last feature is an offset, whose weight is 1: of counts the logarithm of
    the exposure.

    Args:
        prior: prior over w.
        num_targets: Y.
        num_features: D.
        num_weights: R, the number of leading features whose effects vary by group.
        family: "bernoulli", labels 0 and 1, or "poisson", counts.
        observe: the points whose labels `forward` conditions on: "query", "support" or "all".
        row_offsets: 1 if rows have an offset, else 0.

    Raises:
        UsageError: the labels are classes, or family is neither of the two.
    """

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_weights: int,
        family: str = "bernoulli",
        observe: str = "query",
        row_offsets: FromSource = 0,
    ) -> None:
        check_choice("model.family", family, FAMILIES)
        num_inputs = num_features - row_offsets
        linear = hierarchical_regression.Model(prior, num_targets, num_inputs, num_weights, learn_noise=False)
        super().__init__(linear, prior, observe)
        self.family, self.has_offset = family, row_offsets > 0

    @property
    def beta(self) -> Tensor:
        """Weights [Y, D - R] that all groups share."""
        return self.predictor.beta

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """eta [..., T, N, Y]."""
        if not self.has_offset:
            return super().outputs(w, x)
        return super().outputs(w, x[..., :-1]) + x[..., -1:]

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if not self.has_offset:
            return super().outputs_and_pullback(w, x)
        outputs, pullback = super().outputs_and_pullback(w, x[..., :-1])
        return outputs + x[..., -1:], pullback

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        if self.family == "bernoulli":
            return Bernoulli(logits=outputs).to_event(1)
        return Poisson(outputs.clamp(max=LARGEST).exp()).to_event(1)
