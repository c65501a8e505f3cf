"""Features of any scale within the range of a floating-point type."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.errors import UsageError

LEAST, MOST = 1e-10, 1e15  # for rows between, float32 holds the squares, and 1e-12, torch's least length, has no effect


def bounded(x: Tensor) -> Tensor:
    """Rows [..., D], each divided by its largest entry if that is beyond 1e15 or below 1e-10; rows of zeros stay."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    usual = ((largest >= LEAST) & (largest <= MOST)) | (largest == 0)
    return x / torch.where(usual, 1.0, largest)


def unit_scaled(name: str, x: Tensor) -> Tensor:
    """Features [N, D] whose length has no effect, in float64, in a range that float32 represents.

    Raises:
        UsageError: a row is all zero, and has no direction.
    """
    values = as_double(x)
    zero = (values == 0).all(-1)
    if zero.any():
        raise UsageError(
            f"expected rows that can be scaled to unit length in {name}, got {int(zero.sum())} of {len(x)} that are "
            f"all zero; drop them (the first is row {int(zero.int().argmax())})"
        )
    return bounded(values)


def cast(name: str, x: Tensor, like: Tensor) -> Tensor:
    """Inputs [N, *X] with dtype and device of `like`.

    Raises:
        UsageError: that type has no number as large as an entry, or as small as the largest entry of a row.
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
