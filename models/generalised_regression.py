"""Generalised linear mixed model for binary labels or counts, with group effects and shared effects."""

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
LARGEST = 15.0  # upper bound on the log rate of counts: larger values overflow float32 early in training


class Model(SameOutputs):
    """Generalised linear mixed model for labels 0 and 1, or for counts.

        y_i ~ Bernoulli(sigmoid(eta_i))  or  y_i ~ Poisson(exp(eta_i)),    eta_i = w z_i + beta v_i

    The features are x_i = (z_i, v_i). w [Y, R] are the effects of a group, with a learned prior. beta [Y, D - R] are
    learned effects that all groups share. With `row_offsets`, the last feature is an offset that is added to eta_i. For
    counts the offset is usually the logarithm of the exposure.

    Args:
        prior: prior over w.
        num_targets: Y, the number of values in one label.
        num_features: D, the number of features, plus 1 with `row_offsets`.
        num_weights: R, the number of leading features z_i whose effects vary by group.
        family: "bernoulli" for labels 0 and 1, or "poisson" for counts.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).
        row_offsets: 1 if data points have an offset, else 0.

    Raises:
        UsageError: the labels are classes, or `family` has another value.
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
        """Shared effects beta [Y, D - R] of D - R features on the Y values of a label."""
        return self.predictor.beta

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the linear predictors eta of N labels of Y values in T groups [..., T, N, Y]."""
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
