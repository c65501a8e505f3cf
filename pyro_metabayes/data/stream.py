"""Streams of tasks. One task = (seed, split, index): the same on every machine and after a resume."""

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
    """Tasks drawn together: Episodes, or an object that constructs the requested tasks."""

    def tasks(self, index: slice) -> Episodes: ...

    def to(self, device: torch.device | str) -> Block: ...


class Source(Protocol):
    """Anything that draws a block of tasks: a bank of classes, or a simulator."""

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """*X; None: a size that differs between batches."""
        ...

    @property
    def num_targets(self) -> int:
        """Number of components of a label; 0 if labels are classes."""
        ...

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """A function that draws BLOCK tasks from a generator."""
        ...


@runtime_checkable
class DrawsBlocks(Protocol):
    """A source with a block size of its own."""

    def block(self, split: str) -> int:
        """Number of tasks that are drawn together."""


@runtime_checkable
class HasRandomShapes(Protocol):
    """A source whose blocks of training tasks differ in way, shots or number of queries."""

    random_shapes: bool


@runtime_checkable
class HasContext(Protocol):
    """A source that provides counts for some models, by the names of constructor arguments (`build.FromSource`)."""

    @property
    def context(self) -> Mapping[str, int]: ...


def context_of(source: Source) -> dict[str, int]:
    """The counts that the source provides for the parts of a learner; {} for most sources."""
    return dict(source.context) if isinstance(source, HasContext) else {}


@runtime_checkable
class KnownTruth(Protocol):
    """A simulator with a known posterior over the latent of a task."""

    def truth(self, observed: Observed) -> TorchDistribution:
        """The true p(w | observed): batch [T], event [*W]."""
        ...


def check_regression(split: str, shape: TaskShape) -> None:
    """Raise a UsageError for a split or a task shape that is not valid in a regression."""
    if split not in SPLITS:
        raise UsageError(f"no split '{split}'; there are {', '.join(SPLITS)}")
    if shape.way != 1 or shape.shot < 0 or shape.query < 1:
        raise UsageError(f"expected way=1 (labels are numbers), shot >= 0 and query >= 1, got {shape}")
    if shape.query_counts or shape.query_concentration:
        raise UsageError("expected no task.query_counts or query_concentration where labels are numbers; remove them")


def generator_of(seed: int, split: str, block: int) -> Generator:
    """The random number generator of one block, independent of the generators of other blocks."""
    digest = sha256(f"{seed}/{split}/{block}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class Tasks(Protocol):
    """Tasks that are addressed by index."""

    def batch(self, start: int, stop: int) -> Episodes:
        """Tasks start, ..., stop - 1."""
        ...


class TaskStream:
    """Tasks of one split, addressed by index: an endless sequence, or the first `num_tasks` tasks repeated.

    Args:
        draw: draws a block of tasks from a generator.
        seed: seed of the tasks.
        split: the split of the tasks, on which their random numbers depend.
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
        """Tasks start, ..., stop - 1."""
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
        if self._block is None or self._block[0] != block:  # a stream is read in order: cache the last block
            self._block = block, self._draw(generator_of(self._seed, self._split, block))
        return self._block[1]
