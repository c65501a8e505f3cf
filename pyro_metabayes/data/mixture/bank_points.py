"""Points of training tasks from a feature data set, without repetition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from pyro_metabayes.data.mixture.banks import FeatureRows
from pyro_metabayes.data.mixture.shapes import Shape
from pyro_metabayes.data.positions import random_positions

LEAST_ROOM = 5  # least number of rows per class of a task that are left for queries


class Points(NamedTuple):
    """Features [T, S + Q, D] of T tasks, support points first, and the mask of the queries [T, Q]."""

    x: Tensor
    query_mask: Tensor


def bank_points(bank: FeatureRows, shape: Shape, labels: Tensor, merged: int, generator: Generator) -> Points | None:
    """Draw the points of T tasks from a feature data set; None if the data set has too few classes.

    Each class of a task is the union of `merged` random classes of the data set, or of more if the support set needs
    more rows. If a class of a task has more queries than rows, the task has fewer queries: the mask keeps the same
    share of the queries of each class, rounded up. So the number of clusters of a class does not depend on the class
    shares.

    Args:
        bank: the data set.
        shape: shape of the tasks.
        labels: [T, S + Q], labels of the points; each class has `shape.shot` of the S support points.
        merged: number of classes of the data set per class of a task.
        generator: random generator.
    """
    tasks, smallest = len(labels), int(bank.class_sizes.min())
    merged = max(merged, -(-(shape.shot + LEAST_ROOM) // smallest))
    if shape.way * merged > len(bank.class_sizes):
        return None
    place, query_mask = _places(labels, shape, merged * smallest - shape.shot)
    starts = bank.class_sizes.cumsum(0) - bank.class_sizes
    choice = torch.rand(tasks, len(starts), generator=generator).argsort(1)[:, : shape.way * merged]
    number = -(-(int(place.max()) + 1) // merged)
    rows = random_positions(bank.class_sizes[choice], number, int(bank.class_sizes.max()), generator)
    rows = starts[choice].unsqueeze(-1) + rows  # [T, classes of the data set, number]
    of_point = rows[torch.arange(tasks).unsqueeze(1), labels * merged + place % merged, place // merged]
    return Points(bank.x[of_point], query_mask)


def _places(labels: Tensor, shape: Shape, room: int) -> tuple[Tensor, Tensor]:
    """Return the place of each point in its class [T, S + Q], and a mask [T, Q] with at most `room` queries per class.

    Places start at 0, and points with different places get different rows. A masked query has the place of another
    query.
    """
    indicators = one_hot(labels, shape.way)
    queries = indicators.sum(1) - shape.shot  # [T, C]
    share = (room / queries.amax(1, keepdim=True)).clamp(max=1.0)
    kept = (queries * share).ceil().clamp(max=room)
    rank = (indicators.cumsum(1) * indicators).sum(-1) - 1 - shape.shot  # among the queries; support points: negative
    query_mask = (rank < kept.gather(1, labels))[:, shape.way * shape.shot :]
    return shape.shot + torch.where(rank < 0, rank, rank % room), query_mask
