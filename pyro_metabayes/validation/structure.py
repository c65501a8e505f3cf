"""Checks of shapes, dtypes and devices of a batch of tasks, without host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

if TYPE_CHECKING:
    from pyro_metabayes.episodes import Observed

BYTES = torch.uint8  # dtype of images, which are scaled to [0, 1] for the backbone
PLACES = torch.int64  # dtype of row numbers of a dataset, which stand for inputs until the inputs are read


def check_tensors(data: Observed) -> None:
    """Raise a UsageError if a field of the tasks is not a tensor, or if the tensors are on different devices."""
    tensors = _tensors(data)
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"expected {name} to be a tensor, got {type(value).__name__}; use torch.as_tensor")
    for name, value in tensors.items():
        if value.device != (device := data.query_x.device):
            raise UsageError(
                f"expected all tensors on {device}, like query_x, got {name} on {value.device}; use .to('{device}')"
            )


def check_structure(data: Observed) -> None:
    """Check that the tensors of a batch fit together, without host synchronisation.

    Raises:
        UsageError: the shape or dtype of a tensor does not fit the others.
    """
    tensors = _tensors(data)
    if not isinstance(data.num_classes, int) or data.num_classes < 0:
        raise UsageError(
            f"expected num_classes to be a number of classes, or 0 if labels are numbers, got {data.num_classes!r}"
        )
    _check_inputs(data.support_x, data.query_x)
    for name in ("support", "query"):
        shape = tuple(getattr(data, f"{name}_x").shape[:2])
        if f"{name}_y" in tensors:
            _check_labels(f"{name}_y", tensors[f"{name}_y"], shape, data.num_classes)
        _check_mask(f"{name}_mask", tensors[f"{name}_mask"], shape)
    if "unknown_mask" in tensors:
        _check_unknown(tensors["unknown_mask"], data)
    _check_same_labels(data.support_y, tensors.get("query_y", data.support_y))
    _check_tasks(tensors, data.num_tasks)
    if not data.num_tasks:
        raise UsageError("expected at least one task, got none: query_x has shape [0, ...]; pass tasks")


def fits(got: Sequence[int], shape: Sequence[int | None]) -> bool:
    """Return whether the shape `got` of an input equals `shape`. In `shape`, None stands for any size."""
    return len(got) == len(shape) and all(size in (None, other) for size, other in zip(shape, got, strict=True))


def words_of_shape(shape: Sequence[int | None]) -> str:
    """Return the shape of an input as text for a message: "[3, 84, 84]", or "[any]" for [None]."""
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def check_inputs(data: Observed, shape: Sequence[int | None], like: Tensor | None, bytes_too: bool) -> None:
    """Check that the inputs of tasks have the shape, dtype and device that a learner needs.

    Args:
        data: the tasks.
        shape: shape of one input of the backbone, or of its features if the backbone is frozen.
        like: a parameter with the dtype and device of the learner; None if the learner has no parameters.
        bytes_too: whether inputs may also be uint8.

    Raises:
        UsageError: inputs or numeric labels have another shape, dtype or device.
    """
    if not fits(got := tuple(data.query_x.shape[2:]), shape):
        raise UsageError(
            f"expected inputs [T, N, *X] with *X = {words_of_shape(shape)} for this learner (features if the backbone "
            f"is frozen), got *X = {list(got)}; pass inputs of shape {words_of_shape(shape)}, or build a learner for "
            f"inputs of shape {list(got)}"
        )
    if like is None:
        return
    for name, value in _tensors(data).items():
        right = value.dtype == like.dtype or (bytes_too and value.dtype == BYTES)
        if not right and (value.is_floating_point() or name in ("support_x", "query_x")):
            raise UsageError(
                f"expected {name} of {like.dtype}, the dtype of the learner, got {value.dtype}; "
                f"convert it with .to({like.dtype}), or convert the learner"
            )
    if data.query_x.device != like.device:
        raise UsageError(
            f"expected tasks on {like.device}, where the learner is, got {data.query_x.device}; "
            f"use episodes.to('{like.device}')"
        )


def _tensors(data: Observed) -> dict[str, Any]:
    """Return the tensors of the tasks by name, without optional tensors that are None."""
    names = ("support_x", "support_y", "query_x", "query_y", "support_mask", "query_mask", "unknown_mask", "classes")
    present = {name: value for name in names if (value := getattr(data, name, None)) is not None}
    return present | {f"auxiliary['{name}']": value for name, value in data.auxiliary.items()}


def _check_inputs(support: Tensor, query: Tensor) -> None:
    for name, x in (("support_x", support), ("query_x", query)):
        if not (x.is_floating_point() or x.dtype in (BYTES, PLACES)):
            raise UsageError(f"expected {name} of floating point or uint8, got {x.dtype}; convert it with .float()")
        # Row numbers in place of inputs have no axes *X.
        if x.dim() < (2 if x.dtype == PLACES else 3):
            raise UsageError(
                f"expected {name} of shape [T, N, *X] (T tasks of N points), got {list(x.shape)}; for a single task "
                "add the first axis with .unsqueeze(0)"
            )
    if support.shape[2:] != query.shape[2:] or support.dtype != query.dtype:
        raise UsageError(
            "expected points of the same shape *X and dtype in support_x and query_x [T, N, *X], got "
            f"{list(support.shape[2:])}, {support.dtype} in support_x and "
            f"{list(query.shape[2:])}, {query.dtype} in query_x; reshape or convert one of the two tensors"
        )


def _check_labels(name: str, y: Tensor, shape: tuple[int, ...], num_classes: int) -> None:
    """Check the labels of T tasks of N points: int64 classes [T, N], or floats [T, N] or [T, N, Y] (Y per point)."""
    form = f"[{shape[0]}, {shape[1]}{'' if num_classes else ', Y'}]"
    if tuple(y.shape[:2]) != shape or y.dim() > (2 if num_classes else 3):
        raise UsageError(
            f"expected {name} of shape {form}, a label for each input, got {list(y.shape)}; for a single task add the "
            "first axis with .unsqueeze(0)"
        )
    if num_classes and y.dtype != torch.int64:
        raise UsageError(
            f"expected {name} to hold classes of torch.int64, got {y.dtype}; convert {name} with .long(), or set "
            "num_classes=0 for labels that are numbers"
        )
    if not num_classes and not y.is_floating_point():
        raise UsageError(
            f"expected {name} of floating point for num_classes=0 (labels are numbers), got {y.dtype}; set "
            f"num_classes to the number of classes, or convert {name} with .float()"
        )


def _check_same_labels(support: Tensor, query: Tensor) -> None:
    if support.dtype != query.dtype or support.shape[2:] != query.shape[2:]:
        raise UsageError(
            "expected labels of the same shape and dtype in support_y and query_y, got "
            f"{list(support.shape[2:])} of {support.dtype} in support_y and "
            f"{list(query.shape[2:])} of {query.dtype} in query_y; convert one of the two tensors"
        )


def _check_mask(name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise UsageError(
            f"expected {name} of torch.bool and shape {list(shape)}, false for masked points, got {mask.dtype} "
            f"and {list(mask.shape)}; for the first `count` of N points use the mask torch.arange(N) < count"
        )


def _check_unknown(unknown: Tensor, data: Observed) -> None:
    """Check shape and dtype of unknown_mask, the mask of the queries of unknown classes.

    `check_points` checks the values.
    """
    _check_mask("unknown_mask", unknown, tuple(data.query_x.shape[:2]))
    if not data.num_classes:
        raise UsageError("expected unknown_mask with labels that are classes, got numbers; leave unknown_mask out")


def _check_tasks(tensors: dict[str, Tensor], num_tasks: int) -> None:
    """Check that the first axis of every tensor has the length `num_tasks`."""
    for name, value in tensors.items():
        if not value.dim() or value.shape[0] != num_tasks:
            raise UsageError(
                f"expected {name} of {num_tasks} tasks, like query_x, got shape {list(value.shape)}; "
                "the axis of tasks comes first in every tensor"
            )
