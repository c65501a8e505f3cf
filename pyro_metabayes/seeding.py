"""Random numbers of torch: the state of each device, and temporary seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_metabayes.device import accelerator


def random_states(device: torch.device) -> list[Tensor]:
    """The state of the generator of an accelerator, in a list; [] for the CPU, which has torch.get_rng_state."""
    return [] if device.type in ("cpu", "meta") else [torch.get_device_module(device.type).get_rng_state(*_at(device))]


def set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    """Restore the state of the generator of a device.

    Args:
        device: the device.
        states: as `random_states` returned them; a state of another kind of device is ignored.
    """
    if states and len(random_states(device)) and states[0].shape == random_states(device)[0].shape:
        torch.get_device_module(device.type).set_rng_state(states[0], *_at(device))


def _at(device: torch.device) -> tuple[torch.device, ...]:
    """The device as an argument, for kinds of devices of which a machine can have several."""
    return () if device.type == "mps" else (device,)


@contextmanager
def noise_of(seed: int) -> Iterator[None]:
    """Inside, seeds the generators of the CPU and of the accelerator; afterwards, restores their states."""
    device = accelerator()
    before = random_states(device) if device else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if device:
                set_random_states(device, before)
