"""Scaling of images of any type to [0, 1], the input range of the backbones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

BYTE, SIXTEEN_BITS = 255, 65535
SLACK = 0.25  # values may leave [0, 1] by this much, since interpolation overshoots


def as_float(x: Tensor) -> Tensor:
    """Convert a uint8 tensor to float32 in [0, 1]; return a tensor of another type unchanged."""
    return x.float().div_(BYTE) if x.dtype == torch.uint8 else x


def scaled_images(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Scale integer images of the support and query set to float32 in [0, 1]; floats and bools keep their values.

    uint8 images are divided by 255. Images of a wider integer type are divided by 255 if no value exceeds 255, else by
    65535 (16 bits). If both sets have a wider type, both are divided by the divisor of the support set.

    Args:
        support: S support images [S, *X].
        query: Q query images [Q, *X].

    Returns:
        The scaled support images and query images.

    Raises:
        UsageError: integers are negative, exceed 65535, or are only 0 and 1; or query images exceed the divisor of the
            support set.
    """
    scale = _scale("support_x", support)
    if scale is not None and _is_wide(support) and _is_wide(query):
        if not 0 <= query.min() <= query.max() <= scale:
            raise UsageError(
                f"expected integers from 0 to {scale} in query_x, as in support_x, got {_range(query)}; "
                "scale both sets of images alike"
            )
        return _divided(support, scale), _divided(query, scale)
    same = support.dtype == query.dtype == torch.uint8
    return _divided(support, scale), _divided(query, scale if same else _scale("query_x", query))


def refuse_other_range(name: str, x: Tensor) -> None:
    """Raise a UsageError if images are far outside [0, 1], the range of the training images of the backbone."""
    low, high = x.min().item(), x.max().item()
    if low < -SLACK or high > 1 + SLACK:
        raise UsageError(
            f"expected images in [0, 1] in {name}, got values {_range(x)}; divide values up to 255 by 255, and do not "
            "standardise images"
        )


def _is_wide(x: Tensor) -> bool:
    """Return whether a tensor holds integers of more than 8 bits; `tensor_of` converts them to int64."""
    return x.dtype == torch.int64


def _scale(name: str, x: Tensor) -> int | None:
    """Return the divisor of integer images, 255 or 65535; None for floats and bools."""
    if x.dtype != torch.uint8 and not _is_wide(x):
        return None
    if x.min() < 0 or x.max() > SIXTEEN_BITS:
        raise UsageError(
            f"expected integer images from 0 to {BYTE}, or to {SIXTEEN_BITS} for 16 bits, in {name}, got values "
            f"{_range(x)}; pass floats in [0, 1]"
        )
    if x.max() == 1:
        raise UsageError(
            f"expected integer images from 0 to {BYTE} in {name}, got only values 0 and 1; pass black-and-white images "
            "as bool or as floats"
        )
    return BYTE if x.max() <= BYTE else SIXTEEN_BITS


def _divided(x: Tensor, scale: int | None) -> Tensor:
    if scale is None:
        return x.float() if x.dtype == torch.bool else x
    return x.float().div_(scale)


def _range(x: Tensor) -> str:
    return f"from {x.min().item():g} to {x.max().item():g}"
