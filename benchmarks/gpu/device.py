"""The measured device: clock, memory, description. CUDA is supported fully, other accelerators in part."""

from __future__ import annotations

import gc
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import torch

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.runs.results import commit, machine, versions

MEGABYTE = 2**20


def device_named(name: str) -> torch.device:
    """Return the device of a name without index, such as cuda.

    Raises:
        UsageError: the device is not available, or the name has an index.
    """
    with suppress(RuntimeError):  # a name that torch does not know
        device = torch.device(name)
        if device.index is None and torch.get_device_module(device).is_available():
            return device
    raise UsageError(f"expected a device '{name}', found none; take --device cpu, or --toy to test that the rows run")


def synchronise(device: torch.device) -> None:
    torch.get_device_module(device).synchronize()


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return a function that returns the wall time in seconds, after the device has finished all queued work."""

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    return now


def reset_peak(device: torch.device) -> None:
    if reset := getattr(torch.get_device_module(device), "reset_peak_memory_stats", None):
        reset()


def peak_megabytes(device: torch.device) -> float | None:
    """Return the peak memory of tensors since `reset_peak`; None if the device does not record it."""
    peak = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return None if peak is None else peak() / MEGABYTE


def free_unused(device: torch.device) -> None:
    """Release cached memory, so that a row does not depend on earlier rows."""
    if empty := getattr(torch.get_device_module(device), "empty_cache", None):
        gc.collect()
        empty()


@contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    """Context manager in which an operation raises if it makes the host wait for a CUDA device.

    Other devices are not checked.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context manager in which float32 products and convolutions on CUDA have full precision instead of TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def description(device: torch.device) -> dict[str, Any]:
    """Return the device, capability, driver, versions, commit and date of a measurement."""
    return {
        "device": device.type,
        "name": _name(device),
        "capability": _capability(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "host": platform.platform(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _name(device: torch.device) -> str:
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    return machine(device) if name_of is None else name_of(device)


def _capability(device: torch.device) -> str | None:
    return ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else None


def _driver() -> str | None:
    """Return the version of the driver according to nvidia-smi; None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")
        return lines[0].strip() or None
    return None
