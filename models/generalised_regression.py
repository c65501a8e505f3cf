"""Generalised linear regression in groups, for binary labels or counts, with group effects and shared effects."""

from __future__ import annotations

from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Tensor

from pyro_metabayes.errors import check_choice
from pyro_metabayes.models import hierarchical_regression
from pyro_metabayes.models.parts.same_outputs import SameOutputs
from pyro_metabayes.prior import Prior

FAMILIES = ("bernoulli", "poisson")
LARGEST = 15.0  # upper bound on the log rate: larger values overflow in single precision early in training


class Model(SameOutputs):
    """p(y_i | x_i, w) = Bernoulli(sigmoid(eta_i)) or Poisson(exp(eta_i)), eta_i = w z_i + beta v_i, x_i = (z_i, v_i).

    A generalised linear mixed model: w [Y, R] are the effects of a group, with a learned prior; beta [Y,
    D - R] is shared.

    Args:
        prior: prior over w.
        num_targets: Y.
        num_features: D.
        num_weights: R, the number of leading features whose effects vary by group.
        family: "bernoulli", labels 0 and 1, or "poisson", counts.
        observe: the points whose labels `forward` conditions on: "query", "support" or "all".

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
    ) -> None:
        check_choice("model.family", family, FAMILIES)
        linear = hierarchical_regression.Model(prior, num_targets, num_features, num_weights, learn_noise=False)
        super().__init__(linear, prior, observe)
        self.family = family

    @property
    def beta(self) -> Tensor:
        """Weights [Y, D - R] that all groups share."""
        return self.predictor.beta

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        if self.family == "bernoulli":
            return Bernoulli(logits=outputs).to_event(1)
        return Poisson(outputs.clamp(max=LARGEST).exp()).to_event(1)
