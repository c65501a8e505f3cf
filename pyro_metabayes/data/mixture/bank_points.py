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


def bank_points(bank: FeatureRows, shape: Shape, query_y: Tensor, merged: int, generator: Generator) -> Points | None:
    """Draw the points of T tasks from a feature data set; None if the data set has too few classes.

    Each class of a task is the union of `merged` random classes of the data set, or of more if the support set needs
    more rows. If a class of a task has more queries than rows, the task has fewer queries: the mask keeps the same
    share of the queries of each class. So the number of clusters of a class does not depend on the class shares.

    Args:
        bank: the data set.
        shape: shape of the tasks.
        query_y: [T, Q], labels of the queries.
        merged: number of classes of the data set per class of a task.
        generator: random generator.
    """
    tasks, smallest = len(query_y), int(bank.class_sizes.min())
    merged = max(merged, -(-(shape.shot + LEAST_ROOM) // smallest))
    if shape.way * merged > len(bank.class_sizes):
        return None
    room = merged * smallest - shape.shot
    query_mask, rank = _thinned(query_y, shape.way, room)
    support_rank = torch.arange(shape.shot).repeat(shape.way).expand(tasks, -1)
    rank = torch.cat((support_rank, shape.shot + rank % room), 1)  # of masked queries: of any row
    labels = torch.cat((torch.arange(shape.way).repeat_interleave(shape.shot).expand(tasks, -1), query_y), 1)
    starts = bank.class_sizes.cumsum(0) - bank.class_sizes
    choice = torch.rand(tasks, len(starts), generator=generator).argsort(1)[:, : shape.way * merged]
    number = -(-(int(rank.max()) + 1) // merged)
    places = random_positions(bank.class_sizes[choice], number, int(bank.class_sizes.max()), generator)
    column = labels * merged + rank % merged
    rows = (starts[choice].unsqueeze(-1) + places)[torch.arange(tasks).unsqueeze(1), column, rank // merged]
    return Points(bank.x[rows], query_mask)


def _thinned(labels: Tensor, way: int, most: int) -> tuple[Tensor, Tensor]:
    """Return a mask that keeps at most `most` queries of each class, and the rank of each query in its class.

    The kept share is the same for all classes of a task, rounded up to whole queries.

    Args:
        labels: [T, Q], labels of the queries.
        way: number of classes.
        most: largest number of queries of a class.

    Returns:
        Mask [T, Q], and ranks [T, Q] from 0.
    """
    indicators = one_hot(labels, way)
    total = indicators.sum(1)  # [T, C]
    share = (most / total.amax(1, keepdim=True)).clamp(max=1.0)
    kept = (total * share).ceil().clamp(max=most)
    rank = (indicators.cumsum(1) * indicators).sum(-1) - 1
    return rank < kept.gather(1, labels), rank
