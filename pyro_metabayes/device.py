"""The device of a run: the CPU, or any accelerator that torch supports."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

DEVICES = "auto, cpu, cuda, cuda:1, mps or xpu"
WITHOUT_FLOAT64 = ("mps",)
PINNING = ("cuda", "xpu")  # devices that copy asynchronously from pinned host memory


def device_of(name: str) -> torch.device:
    """The torch device of a name.

    Args:
        name: `auto` (the accelerator that `torch.accelerator` reports, else the CPU), `cpu`, or an accelerator with a
            torch backend, with an index for one of several: `cuda`, `cuda:1`, `mps`, `xpu`.

    Raises:
        UsageError: torch has no device of that name, or this machine has no such device.
    """
    if name == "auto":
        return accelerator() or torch.device("cpu")
    device = _named(name)
    if device.type != "cpu" and (there := count_of(device.type)) <= (device.index or 0):
        found = f"{there}, counted from 0" if there else "none; take device=cpu"
        raise UsageError(f"expected a {device.type} device on this machine for device={name}, found {found}")
    return device


def _named(name: str) -> torch.device:
    try:
        device = torch.device(name)
        usable = device.type == "cpu" or hasattr(torch.get_device_module(device.type), "device_count")
    except RuntimeError:  # torch, for an unknown name
        usable = False
    if not usable:
        raise UsageError(f"expected device to be {DEVICES}, got '{name}'")
    return device


def accelerator() -> torch.device | None:
    """The accelerator of this machine, or None; before torch 2.6, which added `torch.accelerator`, only CUDA."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None


def count_of(kind: str) -> int:
    """The number of devices of a kind, such as "cuda", on this machine."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def as_double(values: Tensor) -> Tensor:
    """The values in float64, on the CPU if their device has no float64."""
    return values.to("cpu" if values.device.type in WITHOUT_FLOAT64 else values.device, torch.float64)
