"""The network that maps inputs to features."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_metabayes.specification.recorded import Recorded


class Backbone(Recorded, nn.Module):
    """Features [N, D] of inputs [N, *X]. A new backbone takes `input_shape` X and defines `forward`.

    num_features: D.
    """

    num_features: int

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, D]."""
        raise NotImplementedError
