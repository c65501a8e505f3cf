"""The last step of every backbone: features of unit length."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def embedding(features: Callable[[Tensor], Tensor], x: Tensor, mirror: bool) -> Tensor:
    """features(x) scaled to unit length [N, D].

    mirror: the mean of an image's and of its mirror image's, scaled again: less noise for twice the work.
    """
    its = functional.normalize(features(x), dim=-1)
    return functional.normalize(its + functional.normalize(features(x.flip(-1)), dim=-1), dim=-1) if mirror else its
