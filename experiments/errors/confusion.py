"""The confusion matrix of a run over the classes of its evaluation split."""

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
    """Confusions of C classes, those that occur in some task.

    A class can be predicted only in a task that has it. So the share s_ab of the queries of class a that are predicted
    as b is that of its queries in tasks with both classes.

    Args:
        names: [C].
        counts: n_ab [C, C], number of queries of class a that were predicted as class b.
        met: m_ab [C, C], number of queries of class a in tasks that have class b.
    """

    names: list[str]
    counts: Tensor
    met: Tensor

    @classmethod
    def of(cls, queries: Classified) -> Self:
        """The confusion matrix of the queries of all tasks."""
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
        """s_ab = n_ab / m_ab [C, C]; NaN if no task has both classes."""
        return self.counts / self.met

    def counts_table(self) -> list[Row]:
        """n_ab as text, one row per true class."""
        return self._table([[str(count) for count in row] for row in self.counts.tolist()])

    def shares_table(self) -> list[Row]:
        """s_ab as text, blank if no task has both classes."""
        return self._table(
            [["" if share != share else f"{share:.4f}" for share in row] for row in self.shares.tolist()]
        )

    def most_confused(self, most: int) -> list[Row]:
        """The pairs of different classes with the largest shares s_ab, as rows of a table; at most `most`."""
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
        """The matrix of the classes that occur most often in errors, as true or predicted class; at most `most`."""
        wrong = self.counts.clone().fill_diagonal_(0)
        order = (wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)[:most].sort().values
        names = [self.names[index] for index in order.tolist()]
        return type(self)(names, self.counts[order][:, order], self.met[order][:, order])

    def _table(self, cells: list[list[str]]) -> list[Row]:
        return [
            {TRUE: name} | dict(zip(self.names, row, strict=True)) for name, row in zip(self.names, cells, strict=True)
        ]
