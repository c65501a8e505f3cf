"""The device of a run: the CPU, or any accelerator that torch supports."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

DEVICES = "auto, cpu, cuda, cuda:1, mps or xpu"
WITHOUT_FLOAT64 = ("mps",)
PINNING = ("cuda", "xpu")  # devices that copy asynchronously from pinned host memory


def device_of(name: str) -> torch.device:
    """Return the torch device of this name.

    Args:
        name: one of
            `cpu`,
            an accelerator (`cuda`, `mps` or `xpu`), also with an index, such as `cuda:1`,
            `auto`: the accelerator of this machine (`accelerator`), or the CPU if there is none.

    Raises:
        UsageError: torch has no device of that name, or this machine has no such device.
    """
    if name == "auto":
        return accelerator() or torch.device("cpu")
    device = _named(name)
    if device.type != "cpu" and (there := count_of(device.type)) <= (device.index or 0):
        found = f"{there}, counted from 0; choose a smaller index" if there else "none; use device=cpu"
        raise UsageError(f"expected a {device.type} device on this machine for device={name}, found {found}")
    return device


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        usable = device.type == "cpu" or hasattr(torch.get_device_module(device.type), "device_count")
    except RuntimeError:  # raised by torch for an unknown name
        usable = False
    if not usable:
        raise UsageError(f"expected device to be {DEVICES}, got '{name}'")
    return device


def accelerator() -> torch.device | None:
    """Return the accelerator of this machine, or None if there is none. Torch before 2.6 reports only CUDA."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None


def count_of(kind: str) -> int:
    """Return the number of devices of a kind, such as "cuda", on this machine."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def as_double(values: Tensor) -> Tensor:
    """Return the values in float64. If their device does not support float64, they move to the CPU."""
    return values.to("cpu" if values.device.type in WITHOUT_FLOAT64 else values.device, torch.float64)


# Constants of glibc's malloc.h. 32 MiB is the largest value that glibc accepts for M_MMAP_THRESHOLD.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_ON_HEAP, LARGEST_KEPT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library's malloc keep up to 2 GiB of freed memory.

    By default glibc returns freed arrays of some MiB to the system, and the next step waits for new pages. The waiting
    takes half the time of a forward pass of Conv-4, and a fifth of the time of a training step of savi with ten samples
    (`docs/performance.md`).

    The setting holds for the whole process. Commands and benchmarks call this function. Importing the package does not
    change the setting.

    Returns:
        True if malloc accepts the setting; false if malloc refuses it or the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP) and mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT))
