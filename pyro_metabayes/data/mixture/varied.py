"""Training tasks from a data set, with random way, shots and number of queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mixture.shapes import random_shape
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import Block
from pyro_metabayes.data.task_shape import BLOCK, TaskShape

MOST_PAIRS = 1500  # largest number of pairs of a query and a class: four times that of a 5-way task with 75 queries


class VariedSampler(BankSampler):
    """Sampler from a data set (bank). Training tasks have random ways, shots and numbers of queries.

    `data/mixture/shapes.py` draws these numbers. They are reduced if the classes of the data set have too few inputs.
    The class marginal of the queries is that of the given task shape. Validation and test tasks have the given shape.

    Args:
        bank: the data set.
        block_size: number of training tasks drawn together with one shape. A batch must lie within a block.
    """

    random_shapes = True

    def __init__(self, bank: Bank, block_size: int) -> None:
        super().__init__(bank)
        self.block_size = min(block_size, BLOCK)

    def block(self, split: str) -> int:
        """Return the number of tasks that are drawn together with one shape."""
        return self.block_size if split == "train" else BLOCK

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """Return a function that draws a block of tasks of a split; training tasks have a random shape."""
        fixed = super().sampler(split, shape)
        if split != "train":
            return fixed
        return lambda generator: self.rows_sampler(split, self._varied(shape, generator))(generator)

    def _varied(self, shape: TaskShape, generator: Generator) -> TaskShape:
        """Return a task shape with random way, shots and number of queries, within the sizes of the classes."""
        classes = self.bank.splits["train"]
        smallest, drawn = int(self.bank.class_sizes[classes].min()), random_shape(generator, MOST_PAIRS)
        way = min(drawn.way, len(classes))
        shot = min(drawn.shot, smallest - 1)
        query = max(1, min(drawn.query // drawn.way, smallest - shot))
        return replace(shape, way=way, shot=shot, query=query, query_counts=[])
