"""Confusion matrix of a run over the classes of its evaluation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyro_metabayes.experiments.errors.queries import Classified
from pyro_metabayes.experiments.runs.tables import Row, per_cent

TRUE = "true class"  # title of the first column of a matrix


@dataclass(frozen=True, eq=False)
class Confusion:
    """Confusion matrix of the classes that occur in at least one task.

    A class can be predicted only in a task that has this class. So shares are computed over tasks with both classes,
    the true and the predicted class.

    Args:
        names: names of the classes [classes].
        counts: number of queries of class a that were predicted as class b [classes a, classes b].
        met: number of queries of class a in tasks that have class b [classes a, classes b].
    """

    names: list[str]
    counts: Tensor
    met: Tensor

    @classmethod
    def of(cls, queries: Classified) -> Self:
        """Compute the confusion matrix of the queries of all tasks."""
        classes = queries.candidates.unique()
        place = torch.zeros(len(queries.names), dtype=torch.int64)
        place[classes] = torch.arange(len(classes))
        true, size = place[queries.true], len(classes)

        def counted(others: Tensor) -> Tensor:
            pairs = true.view(-1, 1) * size + place[others]
            return torch.bincount(pairs.flatten(), minlength=size * size).view(size, size)

        names = [queries.names[index] for index in classes.tolist()]
        return cls(names, counted(queries.predicted.view(-1, 1)), counted(queries.candidates))

    @property
    def shares(self) -> Tensor:
        """Share of queries of class a, in tasks with class b, that are predicted as b; NaN without such tasks."""
        return self.counts / self.met

    def counts_table(self) -> list[Row]:
        """Return the numbers of queries as a table, one row per true class and one column per predicted class."""
        return self._table([[str(count) for count in row] for row in self.counts.tolist()])

    def shares_table(self) -> list[Row]:
        """Return the shares as a table, one row per true class; blank if no task has both classes."""
        return self._table(
            [["" if share != share else f"{share:.4f}" for share in row] for row in self.shares.tolist()]
        )

    def most_confused(self, most: int) -> list[Row]:
        """Return a table of at most `most` pairs of different classes, with the largest shares of confused queries."""
        off = self.shares.nan_to_num(0).fill_diagonal_(0).flatten()
        order = off.argsort(descending=True, stable=True)[:most].tolist()
        counts, met, size = self.counts.flatten(), self.met.flatten(), len(self.names)
        return [
            {
                TRUE: self.names[pair // size],
                "predicted as": self.names[pair % size],
                "share %": per_cent(off[pair].item()),
                "queries": f"{counts[pair]} of {met[pair]}",
            }
            for pair in order
            if off[pair] > 0
        ]

    def hardest(self, most: int) -> Self:
        """Return the confusion matrix restricted to the `most` classes that occur most often in errors.

        A class occurs in an error as the true or as the predicted class.
        """
        wrong = self.counts.clone().fill_diagonal_(0)
        order = (wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)[:most].sort().values
        names = [self.names[index] for index in order.tolist()]
        return type(self)(names, self.counts[order][:, order], self.met[order][:, order])

    def _table(self, cells: list[list[str]]) -> list[Row]:
        return [
            {TRUE: name} | dict(zip(self.names, row, strict=True)) for name, row in zip(self.names, cells, strict=True)
        ]
