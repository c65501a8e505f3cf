"""Statistics of a task that measure how informative the support set and the queries are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.transductive.assignments import masked_mean

NUM_STATISTICS = 11
NEIGHBOURS = 4
FAR = -2.0  # less than every cosine


def task_context(cosines: Tensor, between: Tensor, lengths: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """Compute 11 statistics of each task from features of unit length, each of the order of 1.

    The statistics are, up to constants and partly as logarithms,

        way
        mean and sd of the log shots
        queries per class
        effective dimension of the queries: absolute, and relative to the number of queries
        squared length of the class means
        cosine of a query with the nearest class mean
        difference between the cosines with the nearest and the second nearest class mean
        mean cosine of a query with the 4 nearest other queries
        standard deviation over the queries of the cosines with class means

    Args:
        cosines: [T, Q, C], cosines of Q queries with the class means of C classes in T tasks.
        between: [T, Q, Q], cosines between the queries.
        lengths: [T, C], lengths of the class means.
        counts: [T, C], number of support points of each class.
        mask: [T, Q], False for masked queries.

    Returns:
        Tensor [T, NUM_STATISTICS].
    """
    queries = mask.sum(-1).clamp(min=1).to(cosines.dtype)
    way = cosines.shape[-1]
    on = (mask / queries.unsqueeze(-1)).to(cosines.dtype)
    effective = 1 / (on.unsqueeze(1) @ between.square() @ on.unsqueeze(2)).flatten().clamp(min=1e-4)
    shots = counts.clamp(min=1).log()
    best = cosines.topk(2, -1).values
    margin = masked_mean(torch.stack((best[..., 0], best[..., 0] - best[..., 1]), -1), mask).squeeze(1)
    spread = masked_mean((cosines - masked_mean(cosines, mask)).square(), mask).mean((1, 2)).clamp(min=1e-8).sqrt()
    values = (
        torch.full_like(queries, math.log(way / 5)),
        shots.mean(-1),
        shots.std(-1, correction=0),
        (queries / way / 10).log(),
        (effective / 10).log(),
        (2 * effective / queries).log(),
        lengths.square().mean(-1),
        3 * margin[:, 0],
        5 * margin[:, 1],
        2 * _nearest(between, mask),
        5 * spread,
    )
    return torch.stack(values, -1)


def _nearest(between: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean cosine [T] of a query with the 4 nearest other queries, averaged over queries.

    The result is 0 for a task with one query.
    """
    own = torch.eye(between.shape[-1], dtype=torch.bool, device=between.device)
    other = mask.unsqueeze(-1) & mask.unsqueeze(-2) & ~own
    best = between.masked_fill(~other, FAR).topk(min(NEIGHBOURS, between.shape[-1]), -1).values
    found = best > FAR
    return (best * found).sum((1, 2)) / found.sum((1, 2)).clamp(min=1)
