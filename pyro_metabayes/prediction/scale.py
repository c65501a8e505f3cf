"""Rescaling of features to the range of a floating-point type."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.device import as_double
from pyro_metabayes.errors import UsageError

SHORTEST = 1e-12  # a shorter vector is not scaled to unit length, as in torch.nn.functional.normalize
LEAST, MOST = 1e-10, 1e15  # between these, squares are finite in float32 and SHORTEST has no effect


def all_within(values: Tensor, least: float, most: float) -> bool:
    """Return whether all values are between two limits; False if a value is NaN, or if there are no values."""
    if not values.numel():
        return False
    smallest, largest = values.aminmax()
    return least <= smallest.item() and largest.item() <= most


def bounded(x: Tensor) -> Tensor:
    """Divide each vector of x [..., D] by the largest absolute entry a of the vector, if a > 1e15 or 0 < a < 1e-10."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    usual = ((largest >= LEAST) & (largest <= MOST)) | (largest == 0)
    return x / largest.masked_fill(usual, 1.0)


def unit_length(x: Tensor) -> Tensor:
    """Scale each vector of x [..., D] to unit length; a vector of zeros stays zero.

    On a CPU the lengths are read first: for vectors of usual length one division gives the same digits as `bounded`
    and `normalize`. A traced program cannot read the lengths, and on other devices the host would have to wait.

    Args:
        x: vectors of D numbers, of a floating-point type.
    """
    if x.is_cpu and not torch.compiler.is_compiling():
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if all_within(length, LEAST * x.shape[-1] ** 0.5, MOST):  # then the largest entry is between LEAST and MOST
            return x / length
    return functional.normalize(bounded(x), dim=-1)


def unit_scaled(name: str, x: Tensor) -> Tensor:
    """Rescale the rows of features [N, D] that are too long or too short for float32.

    This is for backbones whose features do not depend on the scale of a row (`Backbone.scale_invariant`).

    Args:
        name: name of the argument, for the message.
        x: N rows of D numbers of any real type.

    Raises:
        UsageError: a row is all zero.
    """
    if x.is_floating_point() and all_within(torch.linalg.vector_norm(x, dim=-1), LEAST, MOST):
        return x
    values = as_double(x)
    zero = (values == 0).all(-1)
    if zero.any():
        raise UsageError(
            f"expected rows with a nonzero value in {name}, got {int(zero.sum())} of {len(x)} rows that are all zero; "
            f"remove these rows (the first is row {int(zero.int().argmax())})"
        )
    return bounded(values)


def cast(name: str, x: Tensor, like: Tensor) -> Tensor:
    """Convert inputs to the dtype and device of another tensor.

    Args:
        name: name of the argument, for the message.
        x: inputs [N, *X].
        like: a tensor with the wanted dtype and device.

    Raises:
        UsageError: an entry overflows in the wanted dtype, or the largest entry of an input underflows.
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
            f"expected values in the range of {str(like.dtype).removeprefix('torch.')} in {name}, got a row with the "
            f"largest entry {extreme.item():.3g}; scale the features as in training"
        )
    return values
