"""Random generators: the states of torch's global ones, and generators that belong to one thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


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
    return () if device.type in ("cpu", "mps") else (device,)


class OwnGenerators(TorchDispatchMode):
    """Passes a generator, one per device, to every random operation of torch in this thread."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        device = _device_of_draw(args, kwargs)
        if device.type == "meta":
            return func(*args, **kwargs)
        if device not in self._generators:
            self._generators[device] = Generator(device).manual_seed(self._seed)
        generator = self._generators[device]
        if (with_generator := _overload_with_generator(func)) is None:
            return _drawn_with_lent_state(generator, func, args, kwargs)
        return with_generator(*args, **{**kwargs, "generator": generator})

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the states of these generators at the end."""
        before = {device: generator.get_state() for device, generator in self._generators.items()}
        try:
            yield
        finally:
            for device in list(self._generators):
                if device in before:
                    self._generators[device].set_state(before[device])
                else:
                    del self._generators[device]


def _device_of_draw(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """The device of the numbers, with an index if there can be several."""
    tensors = [value.device for value in args if isinstance(value, Tensor)]
    device = torch.device(kwargs.get("device") or (tensors[0] if tensors else "cpu"))
    if device.index is None and device.type not in ("cpu", "meta", "mps"):
        return torch.device(device.type, torch.get_device_module(device.type).current_device())
    return device


@cache
def _overload_with_generator(func: OpOverload) -> OpOverload | None:
    """The operation with an argument `generator`, if torch has it."""
    names = {argument.name for argument in func._schema.arguments} | {"generator"}
    packet = func.overloadpacket
    for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
        if {argument.name for argument in overload._schema.arguments} == names:
            return overload
    return None


_lending = Lock()


def _drawn_with_lent_state(
    generator: Generator, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The result of an operation that takes no generator, such as dropout: the global one has its state meanwhile."""
    device = generator.device
    module = torch.random if device.type == "cpu" else torch.get_device_module(device.type)
    with _lending:
        before = module.get_rng_state(*_at(device))
        module.set_rng_state(generator.get_state(), *_at(device))
        try:
            return func(*args, **kwargs)
        finally:
            generator.set_state(module.get_rng_state(*_at(device)))
            module.set_rng_state(before, *_at(device))
