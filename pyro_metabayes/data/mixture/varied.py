"""Training tasks of a bank whose way, shots and number of queries vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mixture.shapes import random_shape
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import Block
from pyro_metabayes.data.task_shape import BLOCK, TaskShape

MOST_PAIRS = 1500  # of a query and a class: four times those of a 5-way task with 75 queries


class VariedSampler(BankSampler):
    """As `BankSampler`, but every block of training tasks has a random way, number of shots and number of queries.

    They are those of `data/mixture/shapes.py`, lowered to what the classes of the bank have. The class marginal of the
    queries, and all of validation and test tasks, are as the given shape says.

    Args:
        bank: the bank of classes.
        block_size: number of training tasks of one shape; batches of training tasks must not cross blocks.
    """

    random_shapes = True

    def __init__(self, bank: Bank, block_size: int) -> None:
        super().__init__(bank)
        self.block_size = min(block_size, BLOCK)

    def block(self, split: str) -> int:
        """Number of tasks of one shape."""
        return self.block_size if split == "train" else BLOCK

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """As `Source.sampler`."""
        fixed = super().sampler(split, shape)
        if split != "train":
            return fixed
        return lambda generator: self.rows_sampler(split, self._varied(shape, generator))(generator)

    def _varied(self, shape: TaskShape, generator: Generator) -> TaskShape:
        """The shape with a random way, number of shots and number of queries, which the training classes allow."""
        classes = self.bank.splits["train"]
        smallest, drawn = int(self.bank.class_sizes[classes].min()), random_shape(generator, MOST_PAIRS)
        way = min(drawn.way, len(classes))
        shot = min(drawn.shot, smallest - 1)
        query = max(1, min(drawn.query // drawn.way, smallest - shot))
        return replace(shape, way=way, shot=shot, query=query, query_counts=[])
