"""The device of a run: the CPU, or any accelerator that torch knows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

DEVICES = "auto, cpu, cuda, cuda:1, mps or xpu"
WITHOUT_FLOAT64 = ("mps",)
PINNING = ("cuda", "xpu")  # devices that copy from pinned memory of the host without waiting


def device_of(name: str) -> torch.device:
    """The device of that name; auto: the accelerator that torch finds, else the CPU.

    Any accelerator with a torch backend has a name here, such as "cuda:1" for the second GPU.

    Raises:
        UsageError: no device has that name, or this machine does not have the device.
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
    except RuntimeError:  # of torch, for a name that it does not know
        usable = False
    if not usable:
        raise UsageError(f"expected device to be {DEVICES}, got '{name}'")
    return device


def accelerator() -> torch.device | None:
    """The accelerator of this machine; torch has `torch.accelerator` since version 2.6."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None


def count_of(kind: str) -> int:
    """How many devices of a kind ("cuda", "mps") this machine has."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def as_double(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no float64."""
    return values.to("cpu" if values.device.type in WITHOUT_FLOAT64 else values.device, torch.float64)
