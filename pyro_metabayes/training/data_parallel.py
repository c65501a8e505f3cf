"""Data parallelism over tasks, with random numbers that do not depend on the number of processes."""

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
DRAWS_OF_SIZE = (torch.randn, torch.rand)
DRAWS_IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.cauchy_)
DRAWS_LIKE = (torch.randn_like, torch.rand_like)  # of the size of a tensor


def refuse_unequal_shards(num_tasks: int, processes: int) -> None:
    """Refuse unequal shards: the mean over processes would not be the mean over tasks."""
    if num_tasks % processes:
        raise UsageError(
            f"expected train.tasks_per_step to be a multiple of the {processes} processes of the job, got {num_tasks}; "
            "change it, or trainer.devices"
        )


class TaskShard:
    """The tasks of process `rank` in every step of `num_tasks` tasks: the rank-th of equal, contiguous parts.

    The mean over processes of the mean over their tasks is the mean over all tasks, so the gradient that DDP averages
    equals the gradient of one process. Random states are the same on all processes at all times: each process draws
    the random numbers of all tasks and keeps those of its own tasks (`noise`).
    """

    def __init__(self, rank: int, num_processes: int, num_tasks: int) -> None:
        refuse_unequal_shards(num_tasks, num_processes)
        self.rank, self.num_processes, self.num_tasks = rank, num_processes, num_tasks

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs, validates and writes."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """Number of tasks per step of this process."""
        return self.num_tasks // self.num_processes

    def task_range(self, step: int) -> tuple[int, int]:
        """(start, stop): this process takes the tasks start, ..., stop - 1 of the stream in step 0, 1, ..."""
        start = step * self.num_tasks + self.rank * self.size
        return start, start + self.size

    def noise(self, model: Model, observed: Observed) -> AbstractContextManager[object]:
        """Inside, the random numbers of a task do not depend on the number of processes."""
        return nullcontext() if self.num_processes == 1 else _ShardedNoise(self, len(model.event_shape(observed)))

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tasks of all processes, from the means over the tasks of each; NaN if any of these is NaN."""
        if self.num_processes == 1:
            return dict(terms)
        total = torch.stack([value.detach() for value in terms.values()])
        distributed.all_reduce(total)  # fabric.all_reduce would add a barrier
        return dict(zip(terms, (total / self.num_processes).unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; synchronises the hosts, not the devices."""
        if self.num_processes == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def broadcast(self, value: Value) -> Value:
        """The value of the first process, on all processes."""
        if self.num_processes > 1:
            values = [value]
            distributed.broadcast_object_list(values)
            value = values[0]
        return value


class _ShardedNoise(TorchFunctionMode):
    """Draws random numbers for the tasks of all processes and keeps the part of this process.

    The axis of tasks is the one before the event of a latent [..., T, *W], if its length is the number of tasks of
    the process; otherwise the first axis of that length. A draw without such an axis belongs to all tasks, and is the
    same on all processes. Draws from gamma and discrete distributions are not intercepted.
    """

    def __init__(self, shard: TaskShard, event_dim: int) -> None:
        super().__init__()
        self.shard, self.event_dim = shard, event_dim

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in DRAWS_OF_SIZE:
            size = kwargs["size"] if "size" in kwargs else args[0] if isinstance(args[0], Sequence) else args
            others = {name: value for name, value in kwargs.items() if name != "size"}
            return self._part(size, lambda size: function(size, **others))
        if function in DRAWS_LIKE:
            return self._part(args[0].shape, lambda size: function(args[0].new_empty(size), *args[1:], **kwargs))
        if function in DRAWS_IN_PLACE:
            part = self._part(args[0].shape, lambda size: function(args[0].new_empty(size), *args[1:], **kwargs))
            return args[0].copy_(part)
        if function is functional.dropout:
            factors = self._part(args[0].shape, lambda size: function(args[0].new_ones(size), *args[1:], **kwargs))
            return args[0] * factors
        return function(*args, **kwargs)

    def _part(self, size: Sequence[int], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """This process's part of a draw whose size on all processes together is passed to `draw`."""
        axis = self._axis(size)
        if axis is None:
            return draw(tuple(size))
        all_tasks = (*size[:axis], self.shard.num_tasks, *size[axis + 1 :])
        return draw(all_tasks).narrow(axis, self.shard.rank * self.shard.size, self.shard.size)

    def _axis(self, size: Sequence[int]) -> int | None:
        """The axis of tasks of a draw; None if it has none."""
        expected = len(size) - 1 - self.event_dim
        if expected >= 0 and size[expected] == self.shard.size:
            return expected
        return next((axis for axis, number in enumerate(size) if number == self.shard.size), None)
