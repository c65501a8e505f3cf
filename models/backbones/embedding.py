"""The last step of image backbones: scaling of features to unit length."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def embedding(features: Callable[[Tensor], Tensor], x: Tensor, mirror: bool) -> Tensor:
    """Compute the features of a network, scaled to unit length.

    Args:
        features: the network, which maps N images to D features each [N, D].
        x: N images [N, channels, height, width].
        mirror: whether the scaled features of an image and of its mirror image are averaged, and the average scaled.
            This doubles the computation.

    Returns:
        Tensor [N, D].
    """
    unit = functional.normalize(features(x), dim=-1)
    return functional.normalize(unit + functional.normalize(features(x.flip(-1)), dim=-1), dim=-1) if mirror else unit
