"""Images of any type in the range of the backbones, [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

BYTE, SIXTEEN_BITS = 255, 65535
SLACK = 0.25  # interpolation overshoots [0, 1] by less


def as_float(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; other types unchanged."""
    return x.float().div_(BYTE) if x.dtype == torch.uint8 else x


def scaled_images(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of images with integers as float32 in [0, 1]; floats, and bool as 0 and 1, keep their values.

    Bytes are divided by 255. Integers of a wider type are divided by 255 if none in the support set exceeds it, and by
    65535 (16 bits) if none exceeds that. Query images of a wider type have the scale of such support images.

    Args:
        support: [S, *X].
        query: [Q, *X].

    Raises:
        UsageError: integers are negative, larger than 65535, larger than the scale of the support set, or only 0 and 1.
    """
    scale = _scale("support_x", support)
    if scale is not None and _is_wide(support) and _is_wide(query):
        if not 0 <= query.min() <= query.max() <= scale:
            raise UsageError(
                f"expected integers from 0 to {scale} in query_x, as in support_x, got {_range(query)}; "
                "give both sets of images one scale"
            )
        return _divided(support, scale), _divided(query, scale)
    same = support.dtype == query.dtype == torch.uint8
    return _divided(support, scale), _divided(query, scale if same else _scale("query_x", query))


def refuse_other_range(name: str, x: Tensor) -> None:
    """Refuse images of floats that are not in [0, 1], on which a backbone was trained."""
    low, high = x.min().item(), x.max().item()
    if low < -SLACK or high > 1 + SLACK:
        raise UsageError(
            f"expected images in [0, 1] in {name}, on which the backbone was trained, got values {_range(x)}; divide "
            "those up to 255 by 255, and do not standardise them"
        )


def _is_wide(x: Tensor) -> bool:
    """Whether it holds integers of more than 8 bits, all of which are int64 here."""
    return x.dtype == torch.int64


def _scale(name: str, x: Tensor) -> int | None:
    """The integer that stands for 1; None for other types than integers."""
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
