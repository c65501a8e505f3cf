"""One job on several processes: which tasks of a step each takes, with which noise, and what they agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.model import Model

Value = TypeVar("Value")
MADE = (torch.randn, torch.rand)  # of a size
FILLED = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.cauchy_)
LIKE = (torch.randn_like, torch.rand_like)  # of the size of a tensor


def refuse_uneven(num_tasks: int, processes: int) -> None:
    """Equal shares alone make the mean over processes the mean over tasks."""
    if num_tasks % processes:
        raise UsageError(
            f"expected train.tasks_per_step to be a multiple of the {processes} processes of the job, got {num_tasks}; "
            "change it, or trainer.devices"
        )


class Share:
    """What process `rank` of `of` takes of every step of `num_tasks` tasks: the rank-th part, in their order.

    The mean over processes of a mean over their tasks is the mean over all tasks, so DDP's averaged gradient is that
    of one process. Random states are the same on all processes at all times: each draws the noise of all tasks, and
    keeps that of its own (`noise`).
    """

    def __init__(self, rank: int, of: int, num_tasks: int) -> None:
        refuse_uneven(num_tasks, of)
        self.rank, self.of, self.num_tasks = rank, of, num_tasks

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs, validates and writes."""
        return self.rank == 0

    def of_step(self, step: int) -> tuple[int, int]:
        """The tasks start, ..., stop - 1 of a step, counted from 0."""
        size = self.num_tasks // self.of
        start = step * self.num_tasks + self.rank * size
        return start, start + size

    def noise(self, model: Model, observed: Observed) -> AbstractContextManager[object]:
        """Inside, random numbers for the tasks of this process are those that one process would draw for them."""
        return nullcontext() if self.of == 1 else _NoiseOfAll(self, len(model.event_shape(observed)))

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tasks of all processes, of means over those of each; NaN where any of them is."""
        if self.of == 1:
            return dict(terms)
        together = torch.stack([value.detach() for value in terms.values()])
        distributed.all_reduce(together)  # fabric.all_reduce puts a barrier before it
        return dict(zip(terms, (together / self.of).unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the hosts wait for each other, their devices do not."""
        if self.of == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def of_first(self, value: Value) -> Value:
        """The value that the first process has, on all of them."""
        if self.of > 1:
            values = [value]
            distributed.broadcast_object_list(values)
            value = values[0]
        return value


class _NoiseOfAll(TorchFunctionMode):
    """Draws for the tasks of all processes wherever the code draws for its own, and keeps the part that is its own.

    Which axis counts tasks: the one that stands before the event of a latent [..., T, *W], if it has as many entries
    as the process has tasks, else the first that has. A draw without such an axis is of what tasks share: it is the
    same on all processes, as it should be. Draws from gamma and discrete distributions are not seen here.
    """

    def __init__(self, share: Share, event_dim: int) -> None:
        super().__init__()
        self.share, self.event_dim, self.num_own = share, event_dim, share.num_tasks // share.of

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in MADE:
            size = kwargs["size"] if "size" in kwargs else args[0] if isinstance(args[0], Sequence) else args
            others = {name: value for name, value in kwargs.items() if name != "size"}
            return self._own(size, lambda whole: function(whole, **others))
        if function in LIKE:
            return self._own(args[0].shape, lambda whole: function(args[0].new_empty(whole), *args[1:], **kwargs))
        if function in FILLED:
            own = self._own(args[0].shape, lambda whole: function(args[0].new_empty(whole), *args[1:], **kwargs))
            return args[0].copy_(own)
        if function is functional.dropout:
            kept = self._own(args[0].shape, lambda whole: function(args[0].new_ones(whole), *args[1:], **kwargs))
            return args[0] * kept
        return function(*args, **kwargs)

    def _own(self, size: Sequence[int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        axis = self._axis(size)
        if axis is None:
            return draw(tuple(size))
        whole = (*size[:axis], self.share.num_tasks, *size[axis + 1 :])
        return draw(whole).narrow(axis, self.share.rank * self.num_own, self.num_own)

    def _axis(self, size: Sequence[int]) -> int | None:
        expected = len(size) - 1 - self.event_dim
        if expected >= 0 and size[expected] == self.num_own:
            return expected
        return next((axis for axis, number in enumerate(size) if number == self.num_own), None)
