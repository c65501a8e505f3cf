"""Data parallelism over tasks, with random numbers that do not depend on the number of processes or batches."""

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

if TYPE_CHECKING:  # the import takes a second, and only the loop needs it
    from lightning_fabric import Fabric

Value = TypeVar("Value")


def refuse_unequal_shards(num_tasks: int, processes: int) -> None:
    """Raise a UsageError if the tasks of a step cannot be divided equally among the processes.

    With unequal numbers of tasks, the mean over processes is not the mean over tasks.
    """
    if num_tasks % processes:
        raise UsageError(
            "expected the number of tasks per step to be a multiple of the number of processes, got "
            f"{num_tasks} tasks and {processes} processes; change train.tasks_per_step (in fit: batch_size) or "
            "trainer.devices"
        )


class TaskShard:
    """The part of the tasks of a step that one process computes.

    The tasks of a step are divided into contiguous parts of equal size. Process number `rank` computes part number
    `rank`. Since all parts have the same size, the gradient averaged over processes (DDP) equals the gradient of one
    process with all tasks.

    All processes have the same random state. Each process draws the random numbers of all tasks, and uses those of its
    own tasks (`noise`).

    Args:
        rank: index of this process, from 0.
        num_processes: number of processes.
        num_tasks: number of tasks per step, of all processes together.
    """

    def __init__(self, rank: int, num_processes: int, num_tasks: int) -> None:
        refuse_unequal_shards(num_tasks, num_processes)
        self.rank, self.num_processes, self.num_tasks = rank, num_processes, num_tasks

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0. Only the process of rank 0 logs, validates and writes files."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """Number of tasks per step of this process."""
        return self.num_tasks // self.num_processes

    def task_range(self, step: int, batch: int = 0, batches: int = 1) -> tuple[int, int]:
        """Return (start, stop): this process computes the tasks start, ..., stop - 1 of the stream of training tasks.

        Args:
            step: number of the step, from 0.
            batch: number of the batch, from 0.
            batches: number of batches per process and step.
        """
        size = self.size // batches
        start = step * self.num_tasks + self.rank * self.size + batch * size
        return start, start + size

    def noise(self, batch: int = 0, batches: int = 1) -> AbstractContextManager[None]:
        """Context manager in which each task has the same noise for any number of processes and batches.

        This holds for noise from `task_draws` and other functions of `pyro_metabayes/seeding.py` for tasks, and for
        draws of latents at the sites of a guide. Gamma and discrete distributions are an exception (`task_draws`).

        Args:
            batch: number of the batch of this process.
            batches: number of batches per process and step.
        """
        return noise_of_process(self.rank * batches + batch, self.num_processes * batches)

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average terms over all processes. An average is NaN if the term of any process is NaN.

        Args:
            terms: {name: mean over the tasks of this process}.
        """
        if self.num_processes == 1:
            return dict(terms)
        total = torch.stack([value.detach() for value in terms.values()])
        distributed.all_reduce(total)  # fabric.all_reduce would add a barrier
        return dict(zip(terms, (total / self.num_processes).unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any process. This synchronises the hosts, but not the devices."""
        if self.num_processes == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def broadcast(self, value: Value) -> Value:
        """Return the value of the first process on all processes."""
        if self.num_processes > 1:
            values = [value]
            distributed.broadcast_object_list(values)
            value = values[0]
        return value


class Gradients:
    """Accumulation of the gradient of the loss of a step over batches of equal size.

    More batches need less memory per step. The gradient stays the same up to rounding errors, since each task has the
    same noise for any number of batches.

    Args:
        fabric: Lightning Fabric, which has the device and the processes.
        module: the learner, after `fabric.setup`.
        stream: the training tasks.
        shard: the part of the tasks that this process computes.
        batches: number of batches per process and step.
    """

    def __init__(self, fabric: Fabric, module: nn.Module, stream: Tasks, shard: TaskShard, batches: int = 1) -> None:
        self.fabric, self.module, self.stream, self.shard, self.batches = fabric, module, stream, shard, batches

    def add(self, step: int, kl_weight: float) -> dict[str, Tensor]:
        """Compute the gradients of the loss of one step and add them to the `grad` of the parameters.

        Args:
            step: number of the step, from 0.
            kl_weight: weight of the KL in the loss.

        Returns:
            {name: value} of the terms of the loss, means over the tasks of all processes, in nats per task.

        Raises:
            UsageError: batches have different numbers of tasks.
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
            raise UsageError(
                f"expected the same number of tasks in all batches of a step, got {sorted(sizes)}; change the batches"
            )
        return self.shard.mean(_means(terms))

    def _add_batch(self, step: int, batch: int, kl_weight: float) -> tuple[dict[str, Tensor], int]:
        """Add the gradients of one batch. Return the terms of the loss of the batch, and the number of tasks."""
        episodes = self.stream.batch(*self.shard.task_range(step, batch, self.batches)).to(self.fabric.device)
        # Pyro checks shapes and sites only in the first step, since each check synchronises with the device.
        with pyro.validation_enabled(step == 0), self.shard.noise(batch, self.batches):
            terms = self.module(episodes, kl_weight=kl_weight)
        self.fabric.backward(terms["loss"] / self.batches)  # DDP averages the gradients of all processes
        return terms, episodes.num_tasks


def _means(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Compute the mean of each term of the loss over the batches of a step."""
    return {name: torch.stack([batch[name].detach() for batch in terms]).mean(0) for name in terms[0]}
