"""Pairs of inputs that are two renderings of one image; they are never split between support and query set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of a data set (bank). The two rows of a pair, called partners, are two renderings of one image.

    Args:
        partner: [M], the partner of each of the M rows; the row itself if it has no partner.
    """

    partner: Tensor

    @classmethod
    def of_rows(cls, partner: np.ndarray, labels: np.ndarray, path: str) -> Self:
        """Construct the pairs of a bank (data set sorted by class) from the partners of the rows of a file.

        Two rows are partners if they are renderings of one image.

        Args:
            partner: [M], row number of the partner of each row of the file; its own number if it has no partner.
            labels: [M], the class of every row of the file.
            path: the file, for messages.

        Raises:
            UsageError: a row is not the partner of its partner, or the two have different classes.
        """
        rows = np.arange(len(partner))
        valid = partner.dtype.kind in "iu" and bool(((partner >= 0) & (partner < len(rows))).all())
        if not valid or (partner[partner] != rows).any() or (labels[partner] != labels).any():
            raise UsageError(
                f"expected row numbers in 'partner' of {path} that pair rows of one class, got other values; write the "
                "number of the other row of the pair, or the row's own number if there is no pair"
            )
        order = labels.argsort(kind="stable")
        return cls(torch.from_numpy(order.argsort()[partner[order]]))

    @property
    def single(self) -> Tensor:
        """Booleans [M], true for each of the M rows that has no partner."""
        return self.partner == torch.arange(len(self.partner))

    def refuse_split(self, starts: Tensor, sizes: Tensor, shot: int, number: int) -> None:
        """Raise a UsageError if a task would have to split a pair between support and query set.

        A pair must be split if `shot` is odd, a task needs all inputs of a class, and all these inputs are in pairs.

        Args:
            starts: [C], first row of each class.
            sizes: [C], number of rows of each class.
            shot: support points per class.
            number: support and query points of a class in one task.
        """
        if shot % 2 == 0:
            return
        before = torch.cat((torch.zeros(1, dtype=torch.int64), self.single.cumsum(0)))
        singles = before[starts + sizes] - before[starts]
        if ((sizes <= number) & (singles == 0)).any():
            raise UsageError(
                f"expected an even task.shot, got {shot}; change task.shot or lower task.query (a task needs all "
                "inputs of a class, and all these inputs are in pairs)"
            )

    def positions(
        self, starts: Tensor, sizes: Tensor, shot: int, number: int, largest: int, generator: Generator
    ) -> Tensor:
        """Draw positions [B, C, number] in C classes of B tasks; the first `shot` are for the support set.

        No pair is split between support and query set.

        Args:
            starts: [B, C], first row of each class.
            sizes: [B, C], number of rows of each class.
            shot: support points per class.
            number: support and query points per class.
            largest: number of rows of the largest class of the data set.
            generator: random generator.
        """
        shape = (*sizes.shape, largest)
        keys, ties = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        rows = (starts.unsqueeze(-1) + torch.arange(largest)).clamp(max=len(self.partner) - 1)
        partner = (self.partner[rows] - starts.unsqueeze(-1)).clamp(0, largest - 1)
        order = _order_of_pairs(keys, ties, partner, sizes)
        return _keep_pairs(order, partner, sizes, shot, number)[..., :number]


def _order_of_pairs(keys: Tensor, ties: Tensor, partner: Tensor, sizes: Tensor) -> Tensor:
    """Return a random order of the n positions in each of C classes of B tasks.

    Two positions with renderings of one image (partners) are neighbours in this order.

    Args:
        keys: uniform random numbers [B, C, n] that order the pairs.
        ties: uniform random numbers [B, C, n] that order the two inputs of a pair.
        partner: [B, C, n], position of the partner; the position itself if it has no partner.
        sizes: [B, C], number of rows of each class.
    """
    positions = torch.arange(keys.shape[-1])
    leader = torch.minimum(positions.expand_as(partner), partner)
    # Both inputs of a pair share the key of the first, and `ties` orders them. With their own keys the first input
    # would lead whenever the pair comes early, so it would always be the support point of a 1-shot task.
    joint = keys.gather(-1, leader) + 1e-9 * ties
    return joint.masked_fill(positions >= sizes.unsqueeze(-1), 2.0).argsort(-1)


def _keep_pairs(order: Tensor, partner: Tensor, sizes: Tensor, shot: int, number: int) -> Tensor:
    """Change the order of positions so that the boundary between support and query set does not split a pair.

    If the class has more inputs than the task needs, an unused input replaces the second input of the split pair.
    Otherwise one input of the split pair changes places with an input that belongs to no pair.
    """
    positions = torch.arange(order.shape[-1])
    split = partner.gather(-1, order[..., shot - 1].unsqueeze(-1)).squeeze(-1) == order[..., shot]
    spare = sizes > number
    single = (partner == positions).gather(-1, order) & (positions < sizes.unsqueeze(-1))
    first_single = single.to(torch.uint8).argmax(-1)
    here = torch.where(first_single < shot, torch.tensor(shot), torch.tensor(shot - 1))
    here = torch.where(spare, torch.tensor(shot), here)
    there = torch.where(spare, sizes - 1, first_single)
    return torch.where(split.unsqueeze(-1), _swap(order, here, there), order)


def _swap(order: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Exchange the entries at the positions `here` and `there` of `order`, in every row along the last axis."""
    here, there = here.unsqueeze(-1), there.unsqueeze(-1)
    other = order.scatter(-1, here, order.gather(-1, there))
    return other.scatter(-1, there, order.gather(-1, here))
