"""Ordinal regression: labels 0 to C - 1 whose order has a meaning, such as ratings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import OrderedLogistic, TorchDistribution
from pyro.distributions.transforms import OrderedTransform
from torch import Size, Tensor, nn

import pyro_metabayes
from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """P(y_i <= k | x_i, w) = sigmoid(c_k - w x_i), k = 0, ..., C - 2: the cumulative logit model.

    The latent w [1, D] is the slope of a task. All tasks share the cutpoints c_0 < ... < c_{C-2}, which are learned; in
    place of an intercept. A label is one number [T, N, 1], so that guides see the order. (McCullagh, "Regression
    models for ordinal data", JRSS B 1980.)

    Args:
        prior: prior over w.
        num_targets: 1.
        num_features: D.
        num_levels: C.
        observe: whose labels `forward` conditions on: "query", "support" or "all".

    Raises:
        UsageError: the data have no ordinal labels.
    """

    prior_over_weights: Prior

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_levels: FromSource = 0,
        observe: str = "query",
    ) -> None:
        super().__init__(observe)
        if num_levels < 2 or num_targets != 1:
            raise UsageError("expected data with ordinal labels for model=ordinal, got other data; take data=ordinal")
        self.prior_over_weights = prior
        self._shape = Size((1, num_features))
        levels = torch.arange(1, num_levels) / num_levels
        self.ordered = nn.Parameter(OrderedTransform().inv(levels.logit()))  # equally probable at w = 0

    @property
    def cutpoints(self) -> Tensor:
        """c_0 < ... < c_{C-2} [C - 1], in units of the logistic noise."""
        return OrderedTransform()(self.ordered)

    def event_shape(self, observed: Observed) -> Size:
        return self._shape

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self._shape)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return OrderedLogistic(outputs, self.cutpoints).to_event(1)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Zeros [1, D]."""
        return torch.zeros(self._shape)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Predictors w x_i [..., T, N, 1]."""
        return (w @ x.mT).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """pullback(g) = sum_i g_i x_i."""
        return self.outputs(w, x), lambda cotangent: cotangent.mT @ x
