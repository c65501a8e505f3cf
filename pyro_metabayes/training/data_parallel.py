"""Data parallelism over tasks, with random numbers that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pyro_metabayes.errors import UsageError
from pyro_metabayes.seeding import noise_of_process

Value = TypeVar("Value")


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

    def noise(self) -> AbstractContextManager[None]:
        """Context manager: noise with a task axis does not depend on the number of processes.

        `pyro_metabayes/seeding.py` draws with a task axis; draws of the latent at the sites of a guide have one too.
        """
        return noise_of_process(self.rank, self.num_processes)

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
