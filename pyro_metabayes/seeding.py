"""Random numbers of torch: their state on each device, noise from a seed, and the noise of the tasks of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Generator, Size, Tensor
from torch._ops import OpOverload
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_metabayes.device import accelerator

_process: ContextVar[tuple[int, int]] = ContextVar("process", default=(0, 1))  # rank, number of processes


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, seeds torch's global generators of the CPU and of the accelerator; afterwards, restores their states.

    For a command that stores these states. Threads share them: a library function takes `noise_of`.
    """
    device = accelerator()
    before = random_states(device) if device else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if device:
                set_random_states(device, before)


def noise_of(seed: int) -> AbstractContextManager[Any]:
    """Inside, the draws of this thread are those that `torch.manual_seed(seed)` would give, on every device.

    They come from generators of its own. Torch's global generators, which all threads share, are neither read nor
    changed. A generator that is passed to a draw is used as passed.
    """
    return _OwnGenerators(seed)


class _OwnGenerators(TorchDispatchMode):
    """Passes a generator, one per device, to every random operation of torch in this thread."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}

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
    """The arguments, with a generator among the keywords."""
    place = next(
        (i for i, item in enumerate(func._schema.arguments[: len(args)]) if item.name == "generator"), len(args)
    )
    named = {item.name: value for item, value in zip(func._schema.arguments[place:], args[place:], strict=False)}
    return args[:place], {**kwargs, **named}


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
_lent: ContextVar[bool] = ContextVar("lent", default=False)  # whether an inner `noise_of` of this thread lends a state


def _drawn_with_lent_state(
    generator: Generator, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The result of an operation that takes no generator, such as dropout: the global one has its state meanwhile."""
    device = generator.device
    module = torch.random if device.type == "cpu" else torch.get_device_module(device.type)
    with _lending:
        before = module.get_rng_state(*_at(device))
        module.set_rng_state(generator.get_state(), *_at(device))
        token = _lent.set(True)
        try:
            return func(*args, **kwargs)
        finally:
            _lent.reset(token)
            generator.set_state(module.get_rng_state(*_at(device)))
            module.set_rng_state(before, *_at(device))


@contextmanager
def noise_of_process(rank: int, num_processes: int) -> Iterator[None]:
    """Inside, noise with a task axis is that of the rank-th of equal, contiguous parts of the tasks of all processes.

    Every other draw is shared by all tasks, and is the same on all processes.
    """
    token = _process.set((rank, num_processes))
    try:
        yield
    finally:
        _process.reset(token)


def task_draws(draw: Callable[[Size], Tensor], leading: Sequence[int] = ()) -> Tensor:
    """Draws [*leading, T, ...] of a distribution with batch [T], for the T tasks of this process.

    The draws for all processes [*leading, processes, T, ...] fill memory in the order of the draws [*leading, all
    tasks, ...] of one process. Both use the same random numbers, so each task gets the same noise. Gamma and discrete
    distributions use them in another order: their draws are valid, but depend on the number of processes.

    Args:
        draw: from a sample shape to draws [*sample shape, T, ...], such as `rsample`.
        leading: sizes of the axes before the task axis.
    """
    rank, num_processes = _process.get()
    if num_processes == 1:
        return draw(Size(leading))
    return draw(Size((*leading, num_processes))).select(len(leading), rank)


def task_noise(shape: Sequence[int], like: Tensor, task_dim: int) -> Tensor:
    """Standard normal noise of a shape, with the dtype and device of `like`; task_dim is the task axis of the shape."""
    leading, rest = shape[:task_dim], shape[task_dim:]
    return task_draws(lambda sizes: torch.randn(*sizes, *rest, dtype=like.dtype, device=like.device), leading)


def task_dropout(x: Tensor, rate: float) -> Tensor:
    """x [T, ...] with entries set to zero at the rate, and the others scaled by 1 / (1 - rate)."""
    return task_draws(lambda sizes: functional.dropout(x.expand(*sizes, *x.shape).contiguous(), rate))
