"""Divides the tasks of a step among processes and batches; random numbers do not depend on the division."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import pyro
import torch
from torch import Tensor, distributed, nn

from pyro_metabayes.data.stream import Tasks
from pyro_metabayes.errors import UsageError
from pyro_metabayes.seeding import noise_of_process, random_states, set_random_states

if TYPE_CHECKING:  # takes a second, and no setting needs it
    from lightning_fabric import Fabric

Value = TypeVar("Value")


def refuse_unequal_shards(num_tasks: int, processes: int) -> None:
    """Raise a UsageError for shards of unequal size, for which the mean over processes is not the mean over tasks."""
    if num_tasks % processes:
        raise UsageError(
            f"expected train.tasks_per_step (of fit: batch_size) to be a multiple of the {processes} processes of the "
            f"job, got {num_tasks}; change it, or trainer.devices"
        )


class TaskShard:
    """The tasks of process `rank` in every step of `num_tasks` tasks: the rank-th of equal, contiguous parts.

    All parts have the same size, so the mean over processes of the mean over their tasks is the mean over all tasks.
    Therefore the gradient that DDP averages equals the gradient of one process. Random states are always the same on
    all processes: each process draws the random numbers of all tasks and keeps those of its own tasks (`noise`).

    Args:
        rank: index of this process, from 0.
        num_processes: number of processes.
        num_tasks: number of tasks per step of all processes.
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

    def task_range(self, step: int, batch: int = 0, batches: int = 1) -> tuple[int, int]:
        """(start, stop): in step 0, 1, ... this process computes the tasks start, ..., stop - 1 of the stream.

        If these tasks are divided into `batches` equal, contiguous parts, the range is that of part number `batch`.
        """
        size = self.size // batches
        start = step * self.num_tasks + self.rank * self.size + batch * size
        return start, start + size

    def noise(self, batch: int = 0, batches: int = 1) -> AbstractContextManager[None]:
        """Context manager: noise with a task axis does not depend on the number of processes.

        This holds for the functions of `pyro_metabayes/seeding.py` and for draws of latents at the sites of a guide.
        """
        return noise_of_process(self.rank * batches + batch, self.num_processes * batches)

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tasks of all processes from the means of each process; NaN if the mean of a process is NaN."""
        if self.num_processes == 1:
            return dict(terms)
        total = torch.stack([value.detach() for value in terms.values()])
        distributed.all_reduce(total)  # fabric.all_reduce would add a barrier
        return dict(zip(terms, (total / self.num_processes).unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process. The hosts are synchronised, but not the devices."""
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


class Gradients:
    """Gradients of the loss of a step, accumulated over batches of equal size.

    All batches start from the same random state, and each uses the noise of its own tasks. So the number of batches
    changes the memory of a step, but changes the gradient only by rounding.

    Args:
        fabric: device and processes.
        module: the learner, as set up by the Fabric.
        stream: the training tasks.
        shard: the tasks of this process.
        batches: number of batches per step.
    """

    def __init__(self, fabric: Fabric, module: nn.Module, stream: Tasks, shard: TaskShard, batches: int = 1) -> None:
        self.fabric, self.module, self.stream, self.shard, self.batches = fabric, module, stream, shard, batches

    def add(self, step: int, kl_weight: float) -> dict[str, Tensor]:
        """Add the gradients of step 0, 1, ... to the parameters.

        Returns:
            The terms of the loss, means over the tasks of all processes, in nats per task.

        Raises:
            UsageError: batches have different numbers of tasks, so that their mean is not the mean over tasks.
        """
        terms, sizes = [], set()
        random = (torch.get_rng_state(), random_states(self.fabric.device)) if self.batches > 1 else None
        for batch in range(self.batches):
            if random and batch:
                torch.set_rng_state(random[0])
                set_random_states(self.fabric.device, random[1])
            of_batch, size = self._add_batch(step, batch, kl_weight)
            terms.append(of_batch)
            sizes.add(size)
        if len(sizes) > 1:
            raise UsageError(f"expected equally many tasks in all batches of a step, got {sorted(sizes)}")
        return self.shard.mean(_means(terms))

    def _add_batch(self, step: int, batch: int, kl_weight: float) -> tuple[dict[str, Tensor], int]:
        """The terms of the loss on one batch, and its number of tasks."""
        episodes = self.stream.batch(*self.shard.task_range(step, batch, self.batches)).to(self.fabric.device)
        # Pyro checks shapes and sites only in the first step, since each check synchronises with the device.
        with pyro.validation_enabled(step == 0), self.shard.noise(batch, self.batches):
            terms = self.module(episodes, kl_weight=kl_weight)
        self.fabric.backward(terms["loss"] / self.batches)  # DDP averages the gradients of all processes
        return terms, episodes.num_tasks


def _means(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each term over the batches of a step."""
    return {name: torch.stack([batch[name].detach() for batch in terms]).mean(0) for name in terms[0]}
