"""Random number generators of one thread, used by torch's random operations instead of the global generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


def arguments_of(device: torch.device) -> tuple[torch.device, ...]:
    """Return the arguments of get_rng_state for a device: none for "cpu" and "mps", else the device."""
    return () if device.type in ("cpu", "mps") else (device,)


class OwnGenerators(TorchDispatchMode):
    """Torch mode that passes its own generators, one per device, to random operations called without a generator.

    Args:
        seed: seed of every generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}

    def states(self) -> dict[torch.device, Tensor]:
        """Return the state of each generator that has been used, by device."""
        return {device: generator.get_state() for device, generator in self._generators.items()}

    def set_states(self, states: Mapping[torch.device, Tensor]) -> None:
        """Restore the generators of the devices in `states`; other generators start again from the seed."""
        self._generators = {device: Generator(device) for device in states}
        for device, state in states.items():
            self._generators[device].set_state(state)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _lent.get():
            return func(*args, **kwargs)
        args, kwargs = _by_name(func, args, kwargs)
        if kwargs.get("generator") is not None:
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


def _by_name(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return args and kwargs of an operation, after moving a positional argument `generator` to kwargs."""
    place = next(
        (i for i, item in enumerate(func._schema.arguments[: len(args)]) if item.name == "generator"), len(args)
    )
    named = {item.name: value for item, value in zip(func._schema.arguments[place:], args[place:], strict=False)}
    return args[:place], {**kwargs, **named}


def _device_of_draw(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device of the drawn numbers, with an index if there can be several devices of the type."""
    tensors = [value.device for value in args if isinstance(value, Tensor)]
    device = torch.device(kwargs.get("device") or (tensors[0] if tensors else "cpu"))
    if device.index is None and device.type not in ("cpu", "meta", "mps"):
        return torch.device(device.type, torch.get_device_module(device.type).current_device())
    return device


@cache
def _overload_with_generator(func: OpOverload) -> OpOverload | None:
    """Return the overload of an operation that takes the argument `generator`; None if torch has no such overload."""
    names = {argument.name for argument in func._schema.arguments} | {"generator"}
    packet = func.overloadpacket
    for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
        if {argument.name for argument in overload._schema.arguments} == names:
            return overload
    return None


_lending = Lock()
_lent: ContextVar[bool] = ContextVar("lent", default=False)  # whether the global generator has the state of this thread


def _drawn_with_lent_state(
    generator: Generator, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run an operation that takes no argument `generator`, such as dropout, with the state of `generator`.

    During the operation, the global generator has the state of `generator`. Afterwards, `generator` gets the advanced
    state, and the global generator gets back its earlier state.
    """
    device = generator.device
    module = torch.random if device.type == "cpu" else torch.get_device_module(device.type)
    with _lending:
        before = module.get_rng_state(*arguments_of(device))
        module.set_rng_state(generator.get_state(), *arguments_of(device))
        token = _lent.set(True)
        try:
            return func(*args, **kwargs)
        finally:
            _lent.reset(token)
            generator.set_state(module.get_rng_state(*arguments_of(device)))
            module.set_rng_state(before, *arguments_of(device))
