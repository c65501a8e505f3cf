"""Random numbers of torch: generator states, seeded noise, and noise for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from numbers import Integral
from typing import Any, Protocol, TypeVar

import torch
from torch import Size, Tensor
from torch.nn import functional

from pyro_metabayes.device import accelerator
from pyro_metabayes.errors import UsageError
from pyro_metabayes.handlers.own_generators import OwnGenerators, arguments_of


class Noise(AbstractContextManager[Any], Protocol):
    """Interface of a context manager (a torch mode) with its own random generators and access to their states."""

    def states(self) -> dict[torch.device, Tensor]: ...

    def set_states(self, states: Mapping[torch.device, Tensor]) -> None: ...


OwnNoise = TypeVar("OwnNoise", bound=Noise)
_own: ContextVar[Noise | None] = ContextVar("own", default=None)
_process: ContextVar[tuple[int, int]] = ContextVar("process", default=(0, 1))  # rank, number of processes


def check_seed(seed: object) -> None:
    """Check that torch accepts a seed.

    Raises:
        UsageError: the seed is not an integer or is out of range.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not -(2**63) <= int(seed) < 2**64:
        raise UsageError(f"expected seed to be an integer from -2^63 to 2^64 - 1, got {str(seed)[:40]!r}; change seed")


def random_states(device: torch.device) -> list[Tensor]:
    """Return a list with the state of the generator of an accelerator.

    The list is empty for the CPU, whose state torch.get_rng_state returns, and for the meta device.
    """
    return (
        []
        if device.type in ("cpu", "meta")
        else [torch.get_device_module(device.type).get_rng_state(*arguments_of(device))]
    )


def set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    """Restore the state of the generator of an accelerator.

    Args:
        device: the device of the generator.
        states: the result of `random_states`. An empty list, or a state from another kind of device, has no effect.
    """
    if states and len(random_states(device)) and states[0].shape == random_states(device)[0].shape:
        torch.get_device_module(device.type).set_rng_state(states[0], *arguments_of(device))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager: seed torch's global generators with `seed`, and restore their previous states at the end.

    All threads share the global generators. Code that may run in several threads uses `noise_of` instead.
    """
    with _restored_global_states():
        torch.manual_seed(seed)
        yield


@contextmanager
def _restored_global_states() -> Iterator[None]:
    device = accelerator()
    before = random_states(device) if device else []
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if device:
                set_random_states(device, before)


@contextmanager
def noise_of(seed: int, states: Mapping[torch.device, Tensor] | None = None) -> Iterator[OwnGenerators]:
    """Context manager: this thread draws the random numbers that follow `torch.manual_seed(seed)`, on every device.

    The context manager yields generators of this thread. Draws inside `drawing()` use them; the functions of this file
    draw inside `drawing()`. Torch's global generators, shared by all threads, are not used.

    Args:
        seed: seed of the generators.
        states: the result of `states()` of generators with the same seed; the draws continue there. None: the draws
            start from the seed.
    """
    check_seed(seed)
    with draws_by(OwnGenerators(int(seed))) as own:
        own.set_states(states or {})
        yield own


@contextmanager
def draws_by(generators: OwnNoise) -> Iterator[OwnNoise]:
    """Context manager: draws of this thread inside `drawing()` use `generators`.

    Args:
        generators: a torch mode (`Noise`), such as OwnGenerators. The context manager yields the same object.
    """
    token = _own.set(generators)
    try:
        yield generators
    finally:
        _own.reset(token)


def drawing() -> AbstractContextManager[Any]:
    """Context manager: draw from the generators of this thread (`noise_of`), or from torch's if there are none."""
    return _own.get() or nullcontext()


def restored_noise() -> AbstractContextManager[None]:
    """Context manager: restore, at the end, the states of the generators of `drawing()`."""
    own = _own.get()
    return _restored_global_states() if own is None else _restored_states(own)


@contextmanager
def _restored_states(own: Noise) -> Iterator[None]:
    before = own.states()
    try:
        yield
    finally:
        own.set_states(before)


@contextmanager
def noise_of_process(rank: int, num_processes: int) -> Iterator[None]:
    """Context manager for data parallelism: random numbers that do not depend on the number of processes.

    The tasks of a step form num_processes equal, contiguous blocks. `task_draws` and `task_noise` return block `rank`
    of the numbers that one process would draw for all tasks. Random numbers without a task axis are the same on all
    processes.

    Args:
        rank: index of this process, from 0.
        num_processes: number of processes.
    """
    token = _process.set((rank, num_processes))
    try:
        yield
    finally:
        _process.reset(token)


def task_draws(draw: Callable[[Size], Tensor], leading: Sequence[int] = ()) -> Tensor:
    """Return draws [*leading, T, ...] for the T tasks of this process.

    The noise of a task does not depend on the number P of processes. Each process draws noise for all P * T tasks, in
    the order of a single process, and keeps T tasks. Gamma and discrete distributions are an exception: the draws are
    valid, but depend on P.

    Args:
        draw: function from a sample shape to draws [*sample shape, T, ...], such as `rsample` of a distribution with
            batch shape [T].
        leading: sizes of the axes before the task axis.
    """
    rank, num_processes = _process.get()
    with drawing():
        if num_processes == 1:
            return draw(Size(leading))
        return draw(Size((*leading, num_processes))).select(len(leading), rank)


def task_noise(shape: Sequence[int], like: Tensor, task_dim: int) -> Tensor:
    """Return standard normal noise with dtype and device of `like`; axis `task_dim` of `shape` is the task axis."""
    leading, rest = shape[:task_dim], shape[task_dim:]
    return task_draws(lambda sizes: torch.randn(*sizes, *rest, dtype=like.dtype, device=like.device), leading)


def task_dropout(x: Tensor, rate: float) -> Tensor:
    """Apply dropout to x [T, ...]: set entries to 0 with probability `rate`, and divide other entries by 1 - rate."""
    return task_draws(lambda sizes: functional.dropout(x.expand(*sizes, *x.shape).contiguous(), rate))


def task_subset(mask: Tensor) -> Tensor:
    """Return a random subset of the unmasked points, as a mask [T, S] like `mask`, for T tasks of S points.

    Each task draws a probability from Uniform(0, 1), and keeps each point with this probability. The random number of a
    point depends on the rank of the point among the unmasked points, so padding does not change the subset.
    """
    num_tasks, size = mask.shape
    uniform = task_draws(lambda sizes: torch.rand(*sizes, num_tasks, device=mask.device), (size + 1,)).mT  # [T, S + 1]
    return mask & (uniform.gather(1, mask.cumsum(1)) < uniform[:, :1])
