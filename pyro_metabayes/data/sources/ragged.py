"""Sets of points of different sizes, stored contiguously in memory and padded when tasks are constructed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.episodes import Episodes

# Above this number of random keys for a padded table, one key per point is drawn instead. Another value would change
# the tasks of a seed.
MOST_KEYS = 2**22


@dataclass(frozen=True)
class Ragged:
    """Storage of G sets of points, of different sizes.

    Args:
        points: [M, D + 1], the D features and the label of each of M points, sorted by set.
        sizes: [G], number of points of each set.
    """

    points: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, place: Tensor, points: Tensor) -> Ragged:
        """Sort M points by their sets; `place` [M] is the set of each point. The order within a set is kept."""
        return cls(points[place.argsort(stable=True)], torch.bincount(place))

    def rows(self, sets: Tensor) -> Tensor:
        """Return the row numbers of the points of the given sets, sorted by set."""
        sizes = self.sizes[sets]
        before = (self.sizes.cumsum(0) - self.sizes)[sets] - (sizes.cumsum(0) - sizes)
        return before.repeat_interleave(sizes) + torch.arange(int(sizes.sum()))

    def shuffled_rows(self, sets: Tensor, generator: Generator) -> Tensor:
        """Return the row numbers of the points of the given sets, sorted by set and in random order within each set."""
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
    """Block of tasks, one per set of points. `tasks` pads the requested tasks to the size of the largest one.

    The first `shot` points of a set are the support set; at least one point is left as a query. Of the remaining
    points, at most `query` are queries.

    Args:
        ragged: all sets of points.
        sets: [B], indices of the sets of this block.
        rows: row numbers of the points of these sets, sorted by set.
        shot: largest number of support points.
        query: largest number of queries.
        device: the device of the tasks.
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
        """Return x, y and mask of N points in each of T tasks.

        Args:
            starts: [T, 1], index in `rows` of the first point of each task.
            place: [T, N], positions of the points within the task.
            end: [T, 1], first position without a point. Positions from `end` on give zeros and are masked.
        """
        inside = place < end
        row = self.rows[(starts + place).clamp(max=len(self.rows) - 1)]
        points = self.ragged.points[row] * inside.unsqueeze(-1)
        return points[..., :-1], points[..., -1:], inside
