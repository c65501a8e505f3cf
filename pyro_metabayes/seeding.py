"""Random numbers of torch: generator states, seeded noise, and noise that is independent of the number of processes."""

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
    """Context manager (a torch mode) that draws random numbers from generators of its own, whose states it exposes."""

    def states(self) -> dict[torch.device, Tensor]: ...

    def set_states(self, states: Mapping[torch.device, Tensor]) -> None: ...


OwnNoise = TypeVar("OwnNoise", bound=Noise)
_own: ContextVar[Noise | None] = ContextVar("own", default=None)
_process: ContextVar[tuple[int, int]] = ContextVar("process", default=(0, 1))  # rank, number of processes


def check_seed(seed: object) -> None:
    """Check that torch accepts a seed.

    Raises:
        UsageError: the seed is not an integer, or is out of range.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not -(2**63) <= int(seed) < 2**64:
        raise UsageError(f"expected seed to be an integer from 0 to 2^63 - 1, got {str(seed)[:40]!r}; change seed")


def random_states(device: torch.device) -> list[Tensor]:
    """Return a list with the state of the generator of an accelerator.

    The list is empty for the CPU; torch.get_rng_state returns the state of the CPU's generator.
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
        states: the result of `random_states`; ignored if it is empty or comes from another kind of device.
    """
    if states and len(random_states(device)) and states[0].shape == random_states(device)[0].shape:
        torch.get_device_module(device.type).set_rng_state(states[0], *arguments_of(device))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager: seed torch's global generators with `seed`, and restore their previous states at the end.

    All threads share these generators, so code that may run in several threads uses `noise_of` instead.
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

    The thread gets its own generators, which the context manager yields. Torch's global generators, which all threads
    share, are neither read nor changed. Only draws inside `drawing()` use the generators of the thread. The functions
    of this file draw inside `drawing()`.

    Args:
        seed: seed of the generators.
        states: states from which the draws continue, as returned by `states()` of generators with the same seed; None:
            the draws start from the seed.
    """
    check_seed(seed)
    with draws_by(OwnGenerators(int(seed))) as own:
        own.set_states(states or {})
        yield own


@contextmanager
def draws_by(generators: OwnNoise) -> Iterator[OwnNoise]:
    """Context manager: draws of this thread inside `drawing()` take their random numbers from `generators`.

    Args:
        generators: a torch mode (`Noise`), such as OwnGenerators; the context manager yields it.
    """
    token = _own.set(generators)
    try:
        yield generators
    finally:
        _own.reset(token)


def drawing() -> AbstractContextManager[Any]:
    """Return a context manager whose draws use this thread's generators (`noise_of`), or torch's if it has none."""
    return _own.get() or nullcontext()


def restored_noise() -> AbstractContextManager[None]:
    """Return a context manager that, at its end, restores the states of the generators from which this thread draws."""
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

    The tasks of a step are split into num_processes equal, contiguous blocks. `task_draws` and `task_noise` then return
    block `rank` of the numbers that one process would draw for all tasks. Random numbers without a task axis are the
    same on all processes.

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

    The noise of a task does not depend on the number P of processes. Each process draws [*leading, P, T, ...] and keeps
    its own T tasks. This array has the same order in memory as the draws [*leading, P * T, ...] that one process would
    make for all tasks. Gamma and discrete distributions use random numbers in another order: their draws are valid, but
    depend on P.

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
    """Return standard normal noise of a shape, whose axis `task_dim` is the task axis; dtype and device as `like`."""
    leading, rest = shape[:task_dim], shape[task_dim:]
    return task_draws(lambda sizes: torch.randn(*sizes, *rest, dtype=like.dtype, device=like.device), leading)


def task_dropout(x: Tensor, rate: float) -> Tensor:
    """Apply dropout to x [T, ...] (T tasks): set entries to 0 with probability `rate`, divide others by 1 - rate."""
    return task_draws(lambda sizes: functional.dropout(x.expand(*sizes, *x.shape).contiguous(), rate))


def task_subset(mask: Tensor) -> Tensor:
    """Return a random subset of the points that are true in mask [T, S] (T tasks, S points), as a mask [T, S].

    Each task draws a probability from Uniform(0, 1), and keeps each of its points with this probability. The random
    number of a point depends on its rank among the unmasked points, so padding does not change the subset.
    """
    num_tasks, size = mask.shape
    uniform = task_draws(lambda sizes: torch.rand(*sizes, num_tasks, device=mask.device), (size + 1,)).mT  # [T, S + 1]
    return mask & (uniform.gather(1, mask.cumsum(1)) < uniform[:, :1])
