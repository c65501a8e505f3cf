"""Random numbers of torch: their state on each device, and noise from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_metabayes.device import accelerator


def random_states(device: torch.device) -> list[Tensor]:
    """The state of the device's own random numbers: none on the CPU, whose state is torch's."""
    return [] if device.type in ("cpu", "meta") else [torch.get_device_module(device.type).get_rng_state(*_at(device))]


def set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    """Go on from these; a state of another device, whose random numbers these are not, leaves the device's own."""
    if states and len(random_states(device)) and states[0].shape == random_states(device)[0].shape:
        torch.get_device_module(device.type).set_rng_state(states[0], *_at(device))


def _at(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that names one of several devices; a kind of which there is only one takes none."""
    return () if device.type == "mps" else (device,)


@contextmanager
def noise_of(seed: int) -> Iterator[None]:
    """Random numbers of the CPU and of the accelerator from `seed` inside, and as if none had been drawn after."""
    device = accelerator()
    before = random_states(device) if device else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if device:
                set_random_states(device, before)
