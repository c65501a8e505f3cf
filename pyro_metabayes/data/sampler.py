"""Draws tasks from a data set (bank). Row numbers are drawn per block of tasks, and inputs are gathered per batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.pool import Pool
from pyro_metabayes.data.positions import random_positions
from pyro_metabayes.data.stream import Block
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.device import PINNING
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class RowsOfTasks:
    """Block of tasks that stores positions in a pool of inputs, and looks up the inputs when tasks are requested.

    Args:
        pool: the inputs of the split.
        rows: T tasks with S support points and Q queries. Here support_x [T, S] and query_x [T, Q] are positions in the
            pool, not inputs.
        device: device of the requested tasks.
    """

    pool: Pool
    rows: Episodes
    device: torch.device | str

    def tasks(self, index: slice) -> Episodes:
        """Return the tasks at `index`, with inputs in place of positions."""
        part = self.rows.tasks(index)
        inputs: dict[str, Any] = {name: self._inputs(getattr(part, name)) for name in ("support_x", "query_x")}
        return replace(part.to(self.device), **inputs)

    def to(self, device: torch.device | str) -> RowsOfTasks:
        return replace(self, device=device)

    def _inputs(self, places: Tensor) -> Tensor:
        inputs = self.pool.at(places)
        if self.pool.device != torch.device(self.device) and torch.device(self.device).type in PINNING:
            inputs = inputs.pin_memory()  # copying from pinned memory does not block the host
        return inputs.to(self.device, non_blocking=True)


class BankSampler:
    """Sampler of tasks from a bank (data set). Classes, and inputs of each class, are drawn without replacement."""

    num_targets = 0  # labels are classes

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.bank.input_shape

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """Return a function that draws a block of tasks of a split from a random generator.

        Raises:
            UsageError: the split has too few classes, or too few inputs per class, for tasks of this shape.
        """
        return self.rows_sampler(split, shape)

    def rows_sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], RowsOfTasks]:
        """Return a function that draws a block of tasks from a generator.

        The block stores positions in the pool of inputs. Inputs are looked up when tasks are requested.
        """
        classes = self._classes(split, shape)
        sizes, starts = self.bank.class_sizes[classes], self.bank.class_starts[classes]
        number, pool = self._inputs_per_class(sizes, shape), Pool.of(self.bank, split)

        def draw(generator: Generator) -> RowsOfTasks:
            order = torch.rand(BLOCK, len(classes), generator=generator).topk(shape.way + shape.unknown).indices
            choice, others = order[:, : shape.way], order[:, shape.way :]
            positions = self._positions(starts[choice], sizes[choice], shape.shot, number, generator)
            rows = starts[choice].unsqueeze(-1) + positions  # [B, C, number]
            places = pool.places(rows, generator)
            points = shape.query_points(generator, sizes[choice] - shape.shot)
            tasks = self._tasks(places, classes[choice], shape, *points)
            if shape.unknown:  # drawn last, so that known classes and their inputs are the same without unknown classes
                each = shape.shot + shape.query
                positions = self._positions(starts[others], sizes[others], shape.shot, each, generator)
                rows = starts[others].unsqueeze(-1) + positions[..., shape.shot :]
                tasks = with_unknown(tasks, pool.places(rows, generator).flatten(1))
            return RowsOfTasks(pool, tasks, pool.device)

        return draw

    def _classes(self, split: str, shape: TaskShape) -> Tensor:
        """Return the class ids of the split; too few classes or inputs for the task shape raise a UsageError."""
        shape.check_classes(split)
        classes = self.bank.splits[split]
        if len(classes) < shape.way + shape.unknown:
            unknown = f"task.way + task.unknown = {shape.way} + {shape.unknown}"
            known = f"task.way={shape.way}"
            needed, change = (unknown, "task.way or task.unknown,") if shape.unknown else (known, "task.way")
            enough = self.bank.division == "classes" and len(self.bank.class_sizes) >= shape.way + shape.unknown
            rows = "; for your own data, data.split=rows keeps all classes in every split" if enough else ""
            raise UsageError(
                f"expected at least {needed} classes in the {split} split, got {len(classes)}; lower {change} or add "
                f"classes{rows}"
            )
        sizes = self.bank.class_sizes[classes]
        shape.refuse_small_classes(sizes, [self.bank.class_names[index] for index in classes.tolist()], split)
        if self.bank.pairs:
            self.bank.pairs.refuse_split(
                self.bank.class_starts[classes], sizes, shape.shot, self._inputs_per_class(sizes, shape)
            )
        return classes

    @staticmethod
    def _inputs_per_class(sizes: Tensor, shape: TaskShape) -> int:
        """Return the number of inputs to draw per class: the support points and the largest number of queries."""
        return min(shape.shot + shape.most_queries, int(sizes.max()))

    def _positions(self, starts: Tensor, sizes: Tensor, shot: int, number: int, generator: Generator) -> Tensor:
        """Draw positions [B, C, number] in the C classes of B tasks, without replacement.

        For a class with fewer than `number` inputs, the last positions are invalid and must not be used.
        """
        largest = int(self.bank.class_sizes.max())
        if self.bank.pairs:
            return self.bank.pairs.positions(starts, sizes, shot, number, largest, generator)
        return random_positions(sizes, number, largest, generator)

    @staticmethod
    def _tasks(places: Tensor, classes: Tensor, shape: TaskShape, labels: Tensor, number: Tensor) -> Episodes:
        """Return B tasks, sorted by class, that have positions in the pool in place of inputs.

        Args:
            places: [B, C, N], positions in the pool of N inputs of each of C classes, support points first.
            classes: [B, C], class ids.
            shape: the shape of the tasks.
            labels: [B, Q], class of each of Q queries.
            number: [B, Q], index of each query within its class.
        """
        return Episodes(
            support_x=places[..., : shape.shot].flatten(1),
            support_y=shape.labels(shape.shot, BLOCK),
            query_x=places[torch.arange(BLOCK).unsqueeze(-1), labels, shape.shot + number],
            query_y=labels,
            num_classes=shape.way,
            classes=classes,
        )


def with_unknown(tasks: Episodes, inputs: Tensor) -> Episodes:
    """Add queries of unknown classes to tasks. An unknown class has no support points.

    Args:
        tasks: T tasks without unknown classes.
        inputs: [T, U, *X], U additional queries per task; *X is the shape of one input.
    """
    unknown = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    return replace(
        tasks,
        query_x=torch.cat((tasks.query_x, inputs), dim=1),
        query_y=torch.cat((tasks.query_y, torch.zeros_like(unknown, dtype=tasks.query_y.dtype)), dim=1),
        query_mask=torch.cat((tasks.query_mask, ~unknown), dim=1),
        unknown_mask=torch.cat((torch.zeros_like(tasks.query_mask), unknown), dim=1),
    )
