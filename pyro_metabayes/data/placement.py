"""Places the inputs of a data set (bank) on the device of the run or in the memory of the host."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError, check_choice

PLACES = ("auto", "cpu", "accelerator")
SHARE = 0.5  # a bank may use this share of the free memory of a device; the rest is for training


def place_bank(bank: Bank, device: torch.device, place: str = "auto") -> Bank:
    """Return the bank (data set) with its inputs on the device or on the CPU.

    If the inputs are on the CPU, the tasks of each step are copied to the device.

    Args:
        bank: any bank; inputs that stay in a file are not moved.
        device: the device of the run.
        place: "accelerator": on the device. "cpu": in the memory of the host.
            "auto": on the device if the bank needs at most half of the free memory there.

    Raises:
        UsageError: `place` has another value, or `place` is "accelerator" although the device is the CPU.
    """
    check_choice("data.device", place, PLACES)
    if place == "accelerator" and device.type == "cpu":
        raise UsageError("expected an accelerator for data.device=accelerator, got device=cpu; use data.device=auto")
    return bank if place == "cpu" or (place == "auto" and not fits(bank, device)) else bank.to(device)


def fits(bank: Bank, device: torch.device) -> bool:
    """Return whether the bank needs at most half of the device's free memory; true if the device does not report it."""
    memory_of = getattr(torch.get_device_module(device.type), "mem_get_info", None) if device.type != "cpu" else None
    return memory_of is None or num_bytes(bank) <= SHARE * memory_of(device)[0]


def num_bytes(bank: Bank) -> int:
    """Return the memory in bytes that the inputs of a bank (data set) need, with augmented and auxiliary inputs.

    Inputs that stay in a file count 0.
    """
    tensors = (bank.inputs, bank.views, *bank.auxiliary.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
