"""The columns of the tables: kinds of tasks, such as 1-shot with balanced queries. All methods get the same tasks."""

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

BATCH = 32  # tasks per batch
SEED = 0  # seed of the tasks
MARGINAL_TASKS = 640  # number of tasks from which mean class shares are computed


@dataclass(frozen=True)
class Column:
    """Column of the tables: tasks of one shape.

    Attributes:
        name: title of the column.
        shape: way, shots, number of queries and their class marginal.
    """

    name: str
    shape: TaskShape

    @property
    def balanced(self) -> bool:
        return not self.shape.query_concentration

    def tasks(self, bank: Bank, split: str, number: int) -> Iterator[Episodes]:
        """Yield the tasks 0, ..., number - 1 of a split, in batches."""
        stream = TaskStream(BankSampler(bank).sampler(split, self.shape), SEED, split)
        for start in range(0, number, BATCH):
            yield stream.batch(start, min(start + BATCH, number))

    def marginal(self, bank: Bank) -> list[float]:
        """Return the shares of the classes among the queries, sorted within each test task and averaged over tasks."""
        counts = [
            torch.nn.functional.one_hot(episodes.query_y, self.shape.way).sum(1)
            for episodes in self.tasks(bank, "test", MARGINAL_TASKS)
        ]
        shares = torch.cat(counts).double().sort(descending=True).values / (self.shape.way * self.shape.query)
        return [float(share) for share in shares.mean(0)]


def columns_of(study: Mapping[str, Any], bank: str) -> list[Column]:
    """Return the columns of a bank (data set), without the columns for which the bank has too few inputs."""
    of_bank = study["banks"][bank]
    return [
        Column(name, TaskShape(query=of_bank["query"], **settings))
        for name, settings in study["columns"].items()
        if name not in of_bank.get("without", ())
    ]
