"""The columns of a comparison: kinds of tasks of a bank, the same tasks for every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes

BATCH = 32  # tasks
SEED = 0  # of the tasks
MARGINAL_TASKS = 640  # from which realised marginals are computed


@dataclass(frozen=True)
class Column:
    """Tasks of one shape.

    Attributes:
        name: of the column.
        shape: way, shots, queries and their marginal.
    """

    name: str
    shape: TaskShape

    @property
    def balanced(self) -> bool:
        return not self.shape.query_concentration

    def tasks(self, bank: Bank, split: str, number: int) -> Iterator[Episodes]:
        """Tasks 0, ..., number - 1 of a split, in batches."""
        stream = TaskStream(BankSampler(bank).sampler(split, self.shape), SEED, split)
        for start in range(0, number, BATCH):
            yield stream.batch(start, min(start + BATCH, number))

    def marginal(self, bank: Bank) -> list[float]:
        """Shares of the classes among the queries of a test task, from the most to the least frequent; means."""
        counts = [
            torch.nn.functional.one_hot(episodes.query_y, self.shape.way).sum(1)
            for episodes in self.tasks(bank, "test", MARGINAL_TASKS)
        ]
        shares = torch.cat(counts).double().sort(descending=True).values / (self.shape.way * self.shape.query)
        return [float(share) for share in shares.mean(0)]


def columns_of(study: Mapping[str, Any], bank: str) -> list[Column]:
    """The columns of a bank; it names those that it has too few inputs for."""
    of_bank = study["banks"][bank]
    return [
        Column(name, TaskShape(query=of_bank["query"], **settings))
        for name, settings in study["columns"].items()
        if name not in of_bank.get("without", ())
    ]
