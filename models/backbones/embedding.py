"""The last step of every backbone: features of unit length."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def embedding(features: Callable[[Tensor], Tensor], x: Tensor, mirror: bool) -> Tensor:
    """features(x) scaled to unit length [N, D].

    Args:
        features: the network.
        x: images [N, channels, H, W], or features [N, D].
        mirror: whether the features of each image and of its mirror image are averaged and scaled again, at twice the
            computation.
    """
    unit = functional.normalize(features(x), dim=-1)
    return functional.normalize(unit + functional.normalize(features(x.flip(-1)), dim=-1), dim=-1) if mirror else unit
