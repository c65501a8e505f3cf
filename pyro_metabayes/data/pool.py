"""The inputs from which the tasks of a split are drawn: those of the bank, or several views of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mapped import StoredRows


@dataclass(frozen=True)
class Pool:
    """Inputs of one split.

    Args:
        inputs: those of the bank; or, for training tasks of a bank with V views, [(V + 1) N, *X], view after view.
        rows: [N], the rows of the bank that each view holds, in increasing order; None without views.
    """

    inputs: Tensor | StoredRows
    rows: Tensor | None = None

    @classmethod
    def of(cls, bank: Bank, split: str) -> Pool:
        """The pool of a split; only the training split has views."""
        if bank.views is None or split != "train":
            return cls(bank.inputs)
        rows = bank.rows("train")
        plain = bank.in_memory[rows.to(bank.inputs.device)]
        return cls(torch.cat([plain, bank.views.flatten(0, 1)]), rows)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def places(self, rows: Tensor, generator: Generator) -> Tensor:
        """Positions in the pool of the given rows of the bank, each in a random view."""
        if self.rows is None:
            return rows
        views = torch.randint(len(self.inputs) // len(self.rows), rows.shape, generator=generator)
        return views * len(self.rows) + torch.searchsorted(self.rows, rows)

    def at(self, places: Tensor) -> Tensor:
        """Inputs [..., *X] at the positions `places` [...] of the pool."""
        flat = self.inputs.index_select(0, places.flatten().to(self.device, non_blocking=True))
        return flat.view(*places.shape, *flat.shape[1:])
