"""Streams of tasks. Seed, split and index determine a task, on every machine and after a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Protocol, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Generator

from pyro_metabayes.data.bank import SPLITS
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes, Observed, concatenate
from pyro_metabayes.errors import UsageError


class Block(Protocol):
    """Block of tasks drawn together: Episodes, or an object that constructs the requested tasks."""

    def tasks(self, index: slice) -> Episodes: ...

    def to(self, device: torch.device | str) -> Block: ...


class Source(Protocol):
    """Source of tasks: a sampler from a data set, or a simulator."""

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape *X of one input; None stands for an axis whose size differs between batches."""
        ...

    @property
    def num_targets(self) -> int:
        """Number of values in one label of a regression; 0 if labels are classes."""
        ...

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """Return a function that draws a block of tasks of the given split and shape from a random generator."""
        ...


@runtime_checkable
class DrawsBlocks(Protocol):
    """Source of tasks that determines the size of a block, i.e. how many tasks are drawn together."""

    def block(self, split: str) -> int:
        """Return the number of tasks that are drawn together."""


@runtime_checkable
class HasRandomShapes(Protocol):
    """Source whose training tasks differ in way, shots or queries between blocks (tasks drawn together)."""

    random_shapes: bool


@runtime_checkable
class HasContext(Protocol):
    """Source of tasks that provides counts such as {"num_levels": 5} to the constructors of models and guides."""

    @property
    def context(self) -> Mapping[str, int]: ...


def context_of(source: Source) -> dict[str, int]:
    """Return the counts that a source provides to constructors of models and guides, by name; {} for most sources."""
    return dict(source.context) if isinstance(source, HasContext) else {}


@runtime_checkable
class KnownTruth(Protocol):
    """Simulator of tasks whose exact posterior over the latent is known."""

    def truth(self, observed: Observed) -> TorchDistribution:
        """Return the true posterior p(w | observed) of the latent w of shape *W in T tasks: batch [T], event [*W]."""
        ...


def check_regression(split: str, shape: TaskShape) -> None:
    """Check that the split exists and that the task shape is valid in a regression, else raise a UsageError."""
    if split not in SPLITS:
        raise UsageError(f"expected a split among {', '.join(SPLITS)}, got '{split}'")
    if shape.way != 1 or shape.shot < 0 or shape.query < 1:
        raise UsageError(
            f"expected task.way=1 (labels are numbers), task.shot >= 0 and task.query >= 1, got {shape}; change task.*"
        )
    if shape.query_counts or shape.query_concentration:
        raise UsageError(
            "expected no task.query_counts and no task.query_concentration if labels are numbers, got "
            f"query_counts={shape.query_counts} and query_concentration={shape.query_concentration}; remove both"
        )


def generator_of(seed: int, split: str, block: int) -> Generator:
    """Return the random generator of one block of tasks, independent of the generators of other blocks."""
    digest = sha256(f"{seed}/{split}/{block}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class Tasks(Protocol):
    """Sequence of tasks that are addressed by index."""

    def batch(self, start: int, stop: int) -> Episodes:
        """Return the tasks start, ..., stop - 1."""
        ...


class TaskStream:
    """Sequence of tasks of one split, addressed by index: endless, or the first `num_tasks` tasks repeated.

    Args:
        draw: draws a block of tasks from a generator.
        seed: seed of the tasks.
        split: the split of the tasks. Different splits have different random numbers.
        num_tasks: number of different tasks; None or 0: endless.
        block: number of tasks per call of `draw`.
        one_shape: whether all blocks have tasks of one shape.
    """

    def __init__(
        self,
        draw: Callable[[Generator], Block],
        seed: int,
        split: str,
        num_tasks: int | None = None,
        block: int = BLOCK,
        one_shape: bool = True,
    ) -> None:
        self._draw, self._seed, self._split, self.num_tasks = draw, seed, split, num_tasks
        self.block, self.one_shape = block, one_shape
        self._block: tuple[int, Block] | None = None
        self._all: Episodes | None = None

    def batch(self, start: int, stop: int) -> Episodes:
        """Return the tasks start, ..., stop - 1."""
        if self.num_tasks:
            if self._all is None:
                self._all = self._fresh(0, self.num_tasks)
            return self._all.tasks(torch.arange(start, stop, device=self._all.query_x.device) % self.num_tasks)
        return self._fresh(start, stop)

    def _fresh(self, start: int, stop: int) -> Episodes:
        parts = []
        size = self.block
        for block in range(start // size, (stop - 1) // size + 1):
            first, last = max(start - block * size, 0), min(stop - block * size, size)
            parts.append(self._tasks_of(block).tasks(slice(first, last)))
        return concatenate(parts)

    def _tasks_of(self, block: int) -> Block:
        if self._block is None or self._block[0] != block:  # a stream is read in order, so the last block is kept
            self._block = block, self._draw(generator_of(self._seed, self._split, block))
        return self._block[1]
