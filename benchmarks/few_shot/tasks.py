"""Tasks of a comparison: a cell names way, shot and class marginal, and every method gets the same tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.few_shot.banks import TUNING, source_of
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import Source, TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

QUERIES, FEWEST = 15, 2  # default and least number of queries per class
CHARACTER = 8  # queries per class of Omniglot: few, since imbalanced queries need more, and a class has 20 drawings
MARGINALS = ("balanced", "dirichlet2", "dirichlet1", "absent", "mixed")
NUMBERS = 2**22  # largest number of feature values in one batch of tasks


@dataclass(frozen=True)
class Cell:
    """A kind of task.

    Attributes:
        way: number of classes.
        shot: number of support points per class.
        marginal: class marginal of the queries.
            `balanced`: equally many of each class.
            `dirichlet2`, `dirichlet1`: counts from a multinomial with a Dirichlet(2) or Dirichlet(1) marginal.
            `absent`: none of one class, equally many of the others.
            `mixed`: half of the tasks balanced, half dirichlet2.
    """

    way: int
    shot: int
    marginal: str = "balanced"

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot, {self.marginal}"

    def shape(self, query: int) -> TaskShape:
        """Return the shape of the tasks, with `query` queries per class on average; `absent` has none of one class."""
        if self.marginal not in MARGINALS:
            raise UsageError(f"expected a class marginal of {', '.join(MARGINALS)}, got '{self.marginal}'")
        if self.marginal == "absent":
            return TaskShape(self.way, self.shot, query, query_counts=[0] + [query] * (self.way - 1))
        concentration = {"dirichlet1": 1.0, "dirichlet2": 2.0, "mixed": 2.0}.get(self.marginal, 0.0)
        share = 0.5 if self.marginal == "mixed" else 0.0
        return TaskShape(self.way, self.shot, query, query_concentration=concentration, query_balanced=share)


def stream_of(name: str, cell: Cell, seed: int) -> TaskStream:
    """Return the tasks of a cell from a bank: from the test split, or from the training split of a tuning bank.

    Raises:
        UsageError: the bank has too few classes, or classes that are too small.
    """
    source, split = source_of(name), "train" if name in TUNING else "test"
    return TaskStream(source.sampler(split, cell.shape(_queries(name, source, split, cell))), seed, split)


def _queries(name: str, source: Source, split: str, cell: Cell) -> int:
    """Return the number of queries per class. It is smaller for Omniglot and for tuning banks with small classes."""
    if name.startswith("omniglot_"):
        return CHARACTER
    if not (isinstance(source, BankSampler) and split == "train"):
        return QUERIES
    bank = source.bank
    return max(FEWEST, min(QUERIES, int(bank.class_sizes[bank.splits[split]].min()) - cell.shot))


def batches(stream: TaskStream, number: int) -> Iterator[Episodes]:
    """Yield the tasks 0, ..., number - 1, in batches of at most 64 tasks that fit the memory."""
    first = stream.batch(0, 1)
    points = first.support_x.shape[1] + first.query_x.shape[1]
    size = max(1, min(64, NUMBERS // (points * first.query_x.shape[2])))
    for start in range(0, number, size):
        yield stream.batch(start, min(start + size, number))


def has_tasks(name: str, cell: Cell) -> bool:
    """Return whether the classes of a bank suffice for the tasks of a cell."""
    try:
        stream_of(name, cell, 0)
    except UsageError:
        return False
    return True
