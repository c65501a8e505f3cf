"""The inputs from which the tasks of a split are drawn, with or without augmented copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mapped import StoredRows


@dataclass(frozen=True)
class Pool:
    """Inputs from which tasks of one split are drawn.

    A view is an augmented copy of the N training inputs. Validation and test tasks use no views.

    Args:
        inputs: without views, all inputs of the bank (data set). With V views: the N training inputs and then each
            view, in one tensor [(V + 1) N, *X], where *X is the shape of one input.
        rows: with views, the row numbers [N] of the training inputs in the bank, in increasing order; else None.
    """

    inputs: Tensor | StoredRows
    rows: Tensor | None = None

    @classmethod
    def of(cls, bank: Bank, split: str) -> Pool:
        """Return the pool of a split. Only the pool of the training split contains views."""
        if bank.views is None or split != "train":
            return cls(bank.inputs)
        rows = bank.rows("train")
        plain = bank.in_memory[rows.to(bank.inputs.device)]
        return cls(torch.cat([plain, bank.views.flatten(0, 1)]), rows)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def places(self, rows: Tensor, generator: Generator) -> Tensor:
        """Convert row numbers of the bank (data set) to positions in the pool.

        If the pool has views, a row number becomes the position of the input or of a random copy of the input.
        """
        if self.rows is None:
            return rows
        views = torch.randint(len(self.inputs) // len(self.rows), rows.shape, generator=generator)
        return views * len(self.rows) + torch.searchsorted(self.rows, rows)

    def at(self, places: Tensor) -> Tensor:
        """Return the inputs [..., *X] at the positions `places` [...] of this pool; *X is the shape of one input."""
        flat = self.inputs.index_select(0, places.flatten().to(self.device, non_blocking=True))
        return flat.view(*places.shape, *flat.shape[1:])
