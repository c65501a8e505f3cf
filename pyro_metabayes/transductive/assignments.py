"""Class shares and class means from soft assignments of queries to classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed, class_sums

LEAST_SHARE = 1e-3  # lower bound on a class share, so that its logarithm is finite


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean over the unmasked points of each task; 0 if all points are masked.

    Args:
        values: [..., T, N, V], V values of each of N points of T tasks.
        mask: [T, N], False for masked points.

    Returns:
        Tensor [..., T, 1, V].
    """
    weight = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(values.dtype)
    return weight.unsqueeze(-2) @ values


def class_shares(assignments: Tensor, mask: Tensor) -> Tensor:
    """Compute the class shares of the queries: the mean assignment to each class, bounded below by LEAST_SHARE.

    Args:
        assignments: [T, Q, C], probabilities of C classes for Q queries of T tasks.
        mask: [T, Q], False for masked queries.

    Returns:
        Tensor [T, 1, C].
    """
    return masked_mean(assignments, mask).clamp(min=LEAST_SHARE)


def soft_class_means(observed: Observed) -> Callable[[Tensor], Tensor]:
    """Return a function from soft assignments z [T, Q, C] of the queries to class means [T, C, D].

    The mean of class c is over n_c support points of class c with weight 1, and all queries i with weight z_ic:

        (sum_{support points of c} x + sum_i z_ic x_i) / (n_c + sum_i z_ic).

    Masked points have no effect. The sums over the support points are computed only once.
    """
    sums, counts = class_sums(observed.support_x, observed.support_y, observed.support_mask, observed.num_classes)
    mask, least = observed.query_mask.unsqueeze(-1), torch.finfo(sums.dtype).tiny

    def means(assignments: Tensor) -> Tensor:
        weight = (assignments * mask).mT  # [T, C, Q]
        total = counts + weight.sum(-1, keepdim=True)
        return (sums + weight @ observed.query_x) / total.clamp(min=least)

    return means


def weighted_class_means(x: Tensor, weights: Tensor) -> Tensor:
    """Compute weighted class means m_c = sum_i w_ic x_i / sum_i w_ic; 0 for a class of weight 0.

    Args:
        x: [T, N, D], N points of T tasks, with D features.
        weights: [T, N, C], weights w of the points for C classes.

    Returns:
        Tensor [T, C, D].
    """
    total = weights.sum(-2).unsqueeze(-1)
    return (weights.mT @ x) / total.clamp(min=torch.finfo(x.dtype).tiny)
