"""Pairs of inputs that are two renderings of one image, and never stand on both sides of a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class Pairs:
    """partner [M]: the row of the other rendering of the same image, or the row itself if there is none."""

    partner: Tensor

    @property
    def single(self) -> Tensor:
        """Which rows have no partner [M]."""
        return self.partner == torch.arange(len(self.partner))

    def refuse_split(self, starts: Tensor, sizes: Tensor, shot: int, number: int) -> None:
        """Refuse tasks whose support set must split a pair.

        That happens at an odd number of shots, if a task needs all inputs of a class and all of them are pairs.
        starts, sizes [C]: first row and number of rows of the classes; number: of inputs per class of a task.
        """
        if shot % 2 == 0:
            return
        before = torch.cat((torch.zeros(1, dtype=torch.int64), self.single.cumsum(0)))
        singles = before[starts + sizes] - before[starts]
        if ((sizes <= number) & (singles == 0)).any():
            raise UsageError(
                f"expected an even task.shot where a task needs all inputs of a class and they are pairs of "
                f"renderings, got {shot}; change it, or lower task.query"
            )

    def positions(
        self, starts: Tensor, sizes: Tensor, shot: int, number: int, largest: int, generator: Generator
    ) -> Tensor:
        """Random positions [B, C, number] in each class, the first `shot` for the support set.

        starts, sizes [B, C]: first row and number of rows of the classes; largest: the largest class of the bank.
        """
        shape = (*sizes.shape, largest)
        keys, ties = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        rows = (starts.unsqueeze(-1) + torch.arange(largest)).clamp(max=len(self.partner) - 1)
        partner = (self.partner[rows] - starts.unsqueeze(-1)).clamp(0, largest - 1)
        order = _order_of_pairs(keys, ties, partner, sizes)
        return _keep_pairs(order, partner, sizes, shot, number)[..., :number]


def _order_of_pairs(keys: Tensor, ties: Tensor, partner: Tensor, sizes: Tensor) -> Tensor:
    """A random order of the positions [B, C, n] in which partners are neighbours.

    keys, ties [B, C, n]: uniform. partner [B, C, n]: position of the partner, or the position itself.
    """
    positions = torch.arange(keys.shape[-1])
    leader = torch.minimum(positions.expand_as(partner), partner)
    # Partners share the key of their leader. Their own keys must not order the two: where a pair comes first, the key
    # of the leader is small, so the leader would always be the one of one shot.
    joint = keys.gather(-1, leader) + 1e-9 * ties
    return joint.masked_fill(positions >= sizes.unsqueeze(-1), 2.0).argsort(-1)


def _keep_pairs(order: Tensor, partner: Tensor, sizes: Tensor, shot: int, number: int) -> Tensor:
    """The order, with the pair that the end of the support set splits moved to one side.

    If there are inputs to spare, the second of the pair leaves the task; otherwise it is exchanged for a single input.
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
    """`order` with the entries at positions here and there exchanged, row by row."""
    here, there = here.unsqueeze(-1), there.unsqueeze(-1)
    other = order.scatter(-1, here, order.gather(-1, there))
    return other.scatter(-1, there, order.gather(-1, here))
