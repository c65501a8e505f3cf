"""Scales images of any type to [0, 1], the range of the backbones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

BYTE, SIXTEEN_BITS = 255, 65535
SLACK = 0.25  # values may leave [0, 1] by this much, since interpolation overshoots


def as_float(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; other types unchanged."""
    return x.float().div_(BYTE) if x.dtype == torch.uint8 else x


def scaled_images(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Support and query images with integers scaled to float32 in [0, 1]; floats and bools keep their values.

    uint8 is divided by 255. Wider integer types are divided by 255 if no support image exceeds 255, and otherwise by
    65535 (16 bits). If both sets have a wider type, the query images have the scale of the support images.

    Args:
        support: [S, *X].
        query: [Q, *X].

    Raises:
        UsageError: integers are negative, exceed 65535, exceed the scale of the support set, or are only 0 and 1.
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
    """Raise a UsageError if float images are not in [0, 1], the range on which the backbone was trained."""
    low, high = x.min().item(), x.max().item()
    if low < -SLACK or high > 1 + SLACK:
        raise UsageError(
            f"expected images in [0, 1] in {name}, on which the backbone was trained, got values {_range(x)}; divide "
            "values up to 255 by 255, and do not standardise images"
        )


def _is_wide(x: Tensor) -> bool:
    """Whether a tensor holds integers of more than 8 bits, which `tensor_of` has converted to int64."""
    return x.dtype == torch.int64


def _scale(name: str, x: Tensor) -> int | None:
    """The integer that is scaled to 1; None for types that are no integers."""
    if x.dtype != torch.uint8 and not _is_wide(x):
        return None
    if x.min() < 0 or x.max() > SIXTEEN_BITS:
        raise UsageError(
            f"expected images of integers from 0 to {BYTE}, or to {SIXTEEN_BITS} for 16 bits, in {name}, got "
            f"{_range(x)}; pass floats in [0, 1]"
        )
    if x.max() == 1:
        raise UsageError(
            f"expected images of integers from 0 to {BYTE} in {name}, got only 0 and 1; pass black and white as bool, "
            "or as floats"
        )
    return BYTE if x.max() <= BYTE else SIXTEEN_BITS


def _divided(x: Tensor, scale: int | None) -> Tensor:
    if scale is None:
        return x.float() if x.dtype == torch.bool else x
    return x.float().div_(scale)


def _range(x: Tensor) -> str:
    return f"from {x.min().item():g} to {x.max().item():g}"
