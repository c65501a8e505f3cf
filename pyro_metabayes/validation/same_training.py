"""Check that a call of `fit` continues the training in a folder, and does not describe another training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.data.stream import Tasks
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

FIT = "fit"  # key of the description of a training in a checkpoint
# Values that earlier versions always used, and did not write into the description of a training.
NOT_RECORDED = {"clip_value": 0.0, "clip_each": 0.0, "on_nan": "stop", "seed": 0}
TENSORS = ("support_x", "support_y", "query_x", "query_y", "classes")
PRECISION = 1e-3  # tolerance for moments of the same tasks, since rounding depends on device and library version


def description_of_tasks(stream: Tasks, number: int) -> dict[str, Any]:
    """Compute shapes and moments of the first tasks of a stream. They must be equal when a training is resumed.

    Moments are None if the same tasks have different values when they are read again, for example because of
    augmentation with random numbers of numpy.

    Args:
        stream: stream of tasks.
        number: number of tasks to read.

    Returns:
        {name of a tensor: {"shape", "moments"}}, and the number of tasks of the stream.
    """
    first, again = (_moments(stream.batch(0, number)) for _ in range(2))
    kept = {
        name: values if _equal(values, again[name]) else values | {"moments": None} for name, values in first.items()
    }
    return {"num_tasks": getattr(stream, "num_tasks", None), **kept}


def _moments(episodes: Episodes) -> dict[str, Any]:
    tensors = {name: value for name in TENSORS if (value := getattr(episodes, name)) is not None}
    return {name: {"shape": list(value.shape), "moments": _of_tasks(value)} for name, value in tensors.items()}


def _of_tasks(values: Tensor) -> list[list[float]]:
    """Compute mean and root mean square of the entries of each task."""
    flat = values.detach().cpu().double().flatten(1)
    moments: list[list[float]] = torch.stack((flat.mean(1), flat.square().mean(1).sqrt()), 1).tolist()
    return moments


def _equal(one: Any, other: Any) -> bool:
    """Return whether two descriptions have the same shapes and moments, up to rounding.

    Moments are not compared if one description has none.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return bool(one == other)
    if one["shape"] != other["shape"]:
        return False
    moments = one["moments"], other["moments"]
    if None in moments:
        return True
    return all(
        math.isclose(x, y, rel_tol=PRECISION, abs_tol=PRECISION * PRECISION * scale)
        for (mean, scale), (other_mean, other_scale) in zip(*moments, strict=True)
        for x, y in ((mean, other_mean), (scale, other_scale))
    )


def refuse_another_training(saved: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Raise a UsageError if a call of `fit` does not continue the training in the folder.

    Args:
        saved: plain values in the checkpoint of the folder; empty for a checkpoint of an earlier version.
        config: plain values of the new training. The key "fit" has the description by `fit`. Without this key nothing
            is checked: commands compare the settings themselves.
        folder: the folder of the training.

    Raises:
        UsageError: the folder holds another training.
    """
    if not saved or FIT not in config:
        return
    if FIT not in saved:
        raise UsageError(
            f"expected the folder of a training by fit, got the folder {folder} of a command; continue that run "
            f"with python -m experiments.run resume={folder}, or pass another folder"
        )
    for name, now in config[FIT].items():
        before = saved[FIT].get(name, NOT_RECORDED.get(name))
        if name in ("train", "val"):
            _refuse_other_tasks(name, before, now, folder)
        elif before != now:
            raise UsageError(
                f"expected {name}={before}, as in the training in {folder}, got {name}={now}; pass the same "
                "arguments, or another folder"
            )


def _refuse_other_tasks(name: str, before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for tensor in (*before, *(now.keys() - before.keys())):
        if not _equal(before.get(tensor), now.get(tensor)):
            raise UsageError(
                f"expected the {name} tasks of the training in {folder}, got tasks with another {tensor}; pass "
                "the same tasks, or another folder (tasks drawn with torch's random numbers are reproducible)"
            )
