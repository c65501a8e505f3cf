"""The tensors of one task from arrays of the user, with checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError

Array = np.ndarray | Tensor | Sequence[Any]


def task_of(support_x: Array, support_y: Array, query_x: Array, input_shape: Sequence[int], like: Tensor) -> Observed:
    """One task, T = 1.

    Args:
        support_x: support inputs [S, *X]; bytes are read as images and scaled to [0, 1].
        support_y: their classes [S], integers from 0 to C - 1.
        query_x: query inputs [Q, *X].
        input_shape: *X, which the learner was built for.
        like: a tensor with the device and the dtype of the task.

    Raises:
        UsageError: an array has another shape or type, a value is not finite, or a class has no support point.
    """
    support = _inputs("support_x", support_x, tuple(input_shape), like).unsqueeze(0)
    query = _inputs("query_x", query_x, tuple(input_shape), like).unsqueeze(0)
    labels = _labels(support_y, support.shape[1]).to(like.device)
    num_classes = int(labels.max()) + 1
    return Observed(support_x=support, support_y=labels.unsqueeze(0), query_x=query, num_classes=num_classes)


def as_float(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; other types unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def holds_inputs(x: Tensor, input_shape: tuple[int, ...]) -> bool:
    """Whether a tensor is [T, N, ..., *X]: with fewer axes before *X it is not one input or more per point."""
    leading = x.dim() - len(input_shape)
    return leading >= 2 and x.shape[leading:] == input_shape


def _inputs(name: str, x: Array, shape: tuple[int, ...], like: Tensor) -> Tensor:
    values = as_float(_tensor(name, x)).to(like)
    if tuple(values.shape[1:]) != shape or values.dim() != len(shape) + 1 or not len(values):
        expected = f"[N, {', '.join(map(str, shape))}], N >= 1"
        raise UsageError(f"expected {name} of shape {expected}, got {list(values.shape)}")
    bad = (~torch.isfinite(values)).flatten(1).any(1).sum().item()
    if bad:
        raise UsageError(f"expected finite values in {name}, got NaN or infinity in {bad} of {len(values)} rows")
    return values


def _labels(y: Array, num_points: int) -> Tensor:
    labels = _tensor("support_y", y)
    if labels.is_floating_point() or labels.shape != (num_points,) or labels.min() < 0:
        raise UsageError(
            f"expected support_y to hold {num_points} integers from 0 up, one for each support input, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    present = labels.unique().tolist()
    if present != list(range(len(present))):
        raise UsageError(
            f"expected support inputs of the classes 0, 1, 2, ... without a gap, got labels {present[:20]}; "
            "number the classes anew"
        )
    return labels.long()


def _tensor(name: str, x: Array) -> Tensor:
    try:
        # torch takes neither read-only arrays (without a warning) nor negative strides
        return x if isinstance(x, Tensor) else torch.as_tensor(np.require(x, requirements=["C", "W"]))
    except (TypeError, ValueError):  # strings, objects, rows of unequal length
        raise UsageError(f"expected numbers in {name}, got an array that holds others") from None
