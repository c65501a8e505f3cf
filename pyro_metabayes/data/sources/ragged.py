"""Sets of points of any size: contiguous in memory, padded when tasks are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.episodes import Episodes

# Above this number of random keys for a padded table, one key per point is drawn instead. Part of what defines a task.
MOST_KEYS = 2**22


@dataclass(frozen=True)
class Ragged:
    """G sets one after the other: points [M, D + 1], the features and the label of each; sizes [G]."""

    points: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, place: Tensor, points: Tensor) -> Ragged:
        """From points in any order and the set of each [M]; they keep their order within a set."""
        return cls(points[place.argsort(stable=True)], torch.bincount(place))

    def rows(self, sets: Tensor) -> Tensor:
        """Row numbers of the points of these sets, one set after the other."""
        sizes = self.sizes[sets]
        before = (self.sizes.cumsum(0) - self.sizes)[sets] - (sizes.cumsum(0) - sizes)
        return before.repeat_interleave(sizes) + torch.arange(int(sizes.sum()))

    def shuffled_rows(self, sets: Tensor, generator: Generator) -> Tensor:
        """As `rows`, in random order within each set."""
        sizes, longest = self.sizes[sets], int(self.sizes.max())
        if len(sets) * longest > MOST_KEYS:
            keys = torch.rand(int(sizes.sum()), generator=generator)
        else:
            inside = torch.arange(longest) < sizes.unsqueeze(1)
            keys = torch.rand(len(sets), longest, generator=generator)[inside]
        of_set = torch.arange(len(sets)).repeat_interleave(sizes)
        return self.rows(sets)[(of_set + keys.double()).argsort()]


@dataclass(frozen=True)
class RaggedTasks:
    """A block of tasks, one per set; `tasks` pads the requested ones to the longest of them.

    sets [B]; rows: the points of the sets, one set after the other. The first `shot` points of a set are the support
    set, which never contains all of them. At most `query` of the rest are queries.
    """

    ragged: Ragged
    sets: Tensor
    rows: Tensor
    shot: int
    query: int
    device: torch.device | str = "cpu"

    def to(self, device: torch.device | str) -> RaggedTasks:
        return replace(self, device=device)

    def tasks(self, index: slice) -> Episodes:
        every = self.ragged.sizes[self.sets]
        sizes, starts = every[index].unsqueeze(1), (every.cumsum(0) - every)[index].unsqueeze(1)
        support = (sizes - 1).clamp(max=self.shot)
        places = torch.arange(int(support.max())), torch.arange(min(self.query, int((sizes - support).max())))
        support_x, support_y, support_mask = self._at(starts, places[0].expand(len(sizes), -1), support)
        query_x, query_y, query_mask = self._at(starts, support + places[1], sizes)
        return Episodes(
            support_x=support_x, support_y=support_y, support_mask=support_mask,
            query_x=query_x, query_y=query_y, query_mask=query_mask, classes=self.sets[index].unsqueeze(1),
        ).to(self.device)  # fmt: skip

    def _at(self, starts: Tensor, place: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and mask of the points at these places [T, N] of their sets; places from `end` on are masked, and 0."""
        inside = place < end
        row = self.rows[(starts + place).clamp(max=len(self.rows) - 1)]
        points = self.ragged.points[row] * inside.unsqueeze(-1)
        return points[..., :-1], points[..., -1:], inside
