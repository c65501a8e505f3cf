"""The network that maps inputs to features."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_metabayes.specification.recorded import Recorded


class Backbone(Recorded, nn.Module):
    """Features [N, D] of inputs [N, *X]. A new backbone takes `input_shape` X and defines `forward`.

    Attributes:
        num_features: D.
        unit_range: whether the inputs are images in [0, 1]; predictions then refuse others.
        scale_invariant: whether c x and x have the same features for every c > 0; predictions then take inputs [D] of
            every scale that float64 represents.
    """

    num_features: int
    unit_range: bool = False
    scale_invariant: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, D]."""
        raise NotImplementedError
