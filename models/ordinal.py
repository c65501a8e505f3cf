"""Ordinal regression: labels 0 to C - 1 whose order has a meaning, such as ratings."""

from __future__ import annotations

import torch
from pyro.distributions import OrderedLogistic, TorchDistribution
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor, nn

from pyro_metabayes.build import FromSource
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models import linear_regression
from pyro_metabayes.models.parts.same_outputs import SameOutputs
from pyro_metabayes.prior import Prior


class Model(SameOutputs):
    """Cumulative logit model for ordered labels y_i of 0 to C - 1.

        P(y_i <= k | x_i, w) = sigmoid(c_k - w x_i)

    The latent w [1, D] is the slope of a task. All tasks share the learned cutpoints c_0 < ... < c_{C-2}, which replace
    the intercept. Labels are stored as numbers [T, N, 1] for N points of T tasks, so that guides can use the order.
    (McCullagh, "Regression models for ordinal data", JRSS B 1980.)

    Args:
        prior: prior over w.
        num_targets: number of values in one label; must be 1.
        num_features: D, the number of features.
        num_levels: C, the number of different labels.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the data have no ordinal labels.
    """

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_levels: FromSource = 0,
        observe: str = "query",
    ) -> None:
        if num_levels < 2 or num_targets != 1:
            raise UsageError("expected data with ordinal labels for model=ordinal, got other data; set data=ordinal")
        super().__init__(linear_regression.Model(prior, 1, num_features), prior, observe)
        levels = torch.arange(1, num_levels) / num_levels
        self.ordered = nn.Parameter(OrderedTransform().inv(levels.logit()))  # all levels equally probable at w = 0

    @property
    def cutpoints(self) -> Tensor:
        """Cutpoints [C - 1] c_0 < ... < c_{C-2} between C labels, on the scale of the logits."""
        return OrderedTransform()(self.ordered)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return OrderedLogistic(outputs, self.cutpoints).to_event(1)
