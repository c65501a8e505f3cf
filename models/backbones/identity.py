"""No backbone: the inputs are features already."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.scale import bounded


class Backbone(pyro_metabayes.Backbone):
    """The input features [N, D].

    Args:
        normalise: whether they are scaled to unit length.

    Raises:
        UsageError: the inputs are not features.
    """

    def __init__(self, input_shape: tuple[int, ...], normalise: bool = True) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise UsageError(
                f"backbone=identity expects features [D], got inputs of shape {list(input_shape)}; "
                "take backbone=conv4 for images"
            )
        (self.num_features,) = input_shape
        self.normalise = self.scale_invariant = normalise

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(bounded(x), dim=-1) if self.normalise else x
