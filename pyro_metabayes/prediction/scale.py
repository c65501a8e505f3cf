"""Features of any scale within the range of a floating-point type."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.errors import UsageError

LEAST, MOST = 1e-10, 1e15  # between these, squares are finite in float32 and the 1e-12 of normalize has no effect


def bounded(x: Tensor) -> Tensor:
    """Rows [..., D], divided by their largest absolute entry if it is above 1e15 or below 1e-10 (but not 0)."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    usual = ((largest >= LEAST) & (largest <= MOST)) | (largest == 0)
    return x / torch.where(usual, 1.0, largest)


def unit_scaled(name: str, x: Tensor) -> Tensor:
    """Features [N, D], rescaled in float64 to a range that float32 represents, for a scale-invariant backbone.

    Raises:
        UsageError: a row is all zero, so that it has no direction.
    """
    largest = x.abs().amax(-1)
    if x.is_floating_point() and bool(((largest >= LEAST) & (largest <= MOST)).all()):
        return x
    values = as_double(x)
    zero = (values == 0).all(-1)
    if zero.any():
        raise UsageError(
            f"expected rows that can be scaled to unit length in {name}, got {int(zero.sum())} of {len(x)} that are "
            f"all zero; remove them (the first is row {int(zero.int().argmax())})"
        )
    return bounded(values)


def cast(name: str, x: Tensor, like: Tensor) -> Tensor:
    """Inputs [N, *X] with dtype and device of `like`.

    Raises:
        UsageError: an entry overflows in this dtype, or the largest entry of a row underflows.
    """
    values = x.to(like)
    tiny = torch.finfo(like.dtype).tiny
    largest = x.flatten(1).abs().amax(1) if x.is_floating_point() and x.numel() else x.new_zeros(1)
    small = (largest > 0) & (largest < tiny)
    if not values.isfinite().all() or small.any():
        extreme = largest[small].min() if small.any() else largest.max()
        raise UsageError(
            f"expected inputs that {str(like.dtype).removeprefix('torch.')} can represent in {name}, got a row whose "
            f"largest entry is {extreme.item():.3g}; scale the features as in training"
        )
    return values
