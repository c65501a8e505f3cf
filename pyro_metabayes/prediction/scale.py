"""Features of any scale within the range of a floating-point type."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.device import as_double, on_host
from pyro_metabayes.errors import UsageError

LEAST, MOST = 1e-10, 1e15  # between these, squares are finite in float32 and the 1e-12 of normalize has no effect


def all_within(values: Tensor, least: float, most: float) -> bool:
    """Whether there are values and all are between two limits; false if one is NaN."""
    if not values.numel():
        return False
    smallest, largest = values.aminmax()
    return least <= smallest.item() and largest.item() <= most


def bounded(x: Tensor) -> Tensor:
    """Rows [..., D], divided by their largest absolute entry if it is above 1e15 or below 1e-10 (but not 0)."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    if on_host(largest) and all_within(largest, LEAST, MOST):  # saves the division
        return x
    usual = ((largest >= LEAST) & (largest <= MOST)) | (largest == 0)
    return x / largest.masked_fill(usual, 1.0)


def unit_scaled(name: str, x: Tensor) -> Tensor:
    """Features [N, D], rescaled in float64 to a range that float32 represents, for a scale-invariant backbone.

    Raises:
        UsageError: a row is all zero, so that it has no direction.
    """
    largest = x.abs().amax(-1)
    if x.is_floating_point() and all_within(largest, LEAST, MOST):
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
    values, limits = x.to(like), torch.finfo(like.dtype)
    if not x.numel():
        return values
    exact = x if x.is_floating_point() else values
    largest = exact.flatten(1).abs().amax(1)
    if all_within(largest, limits.tiny, limits.max):
        return values
    small = (largest > 0) & (largest < limits.tiny)
    if not largest.to(like).isfinite().all() or small.any():
        extreme = largest[small].min() if small.any() else largest.max()
        raise UsageError(
            f"expected inputs that {str(like.dtype).removeprefix('torch.')} can represent in {name}, got a row whose "
            f"largest entry is {extreme.item():.3g}; scale the features as in training"
        )
    return values
