"""Assignments (probabilities that queries belong to classes), and class shares and class means from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed, class_sums

LEAST_SHARE = 1e-3  # lower bound on a class share, so that its logarithm is finite


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [..., T, 1, V] over the unmasked points; 0 if all points are masked.

    Args:
        values: [..., T, N, V].
        mask: [T, N].
    """
    weight = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(values.dtype)
    return weight.unsqueeze(-2) @ values


def class_shares(assignments: Tensor, mask: Tensor) -> Tensor:
    """Class shares [T, 1, C]: the mean assignment of the queries, and at least LEAST_SHARE.

    Args:
        assignments: probabilities [T, Q, C] of the classes of each query.
        mask: [T, Q].
    """
    return masked_mean(assignments, mask).clamp(min=LEAST_SHARE)


def soft_class_means(observed: Observed) -> Callable[[Tensor], Tensor]:
    """The function from assignments z [T, Q, C] to (sum_{support of c} x_i + sum_i z_ic x_i) / (n_c + sum_i z_ic).

    This is the mean of class c over its n_c support points and all queries, weighted by their assignments z. Masked
    points have no effect. The sums over the support points are computed once.
    """
    sums, counts = class_sums(observed.support_x, observed.support_y, observed.support_mask, observed.num_classes)
    mask, least = observed.query_mask.unsqueeze(-1), torch.finfo(sums.dtype).tiny

    def means(assignments: Tensor) -> Tensor:
        weight = (assignments * mask).mT  # [T, C, Q]
        total = counts + weight.sum(-1, keepdim=True)
        return (sums + weight @ observed.query_x) / total.clamp(min=least)

    return means


def weighted_class_means(x: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_ic x_i / sum_i w_ic [T, C, D] for points x [T, N, D] and weights [T, N, C]; 0 for a class of weight 0."""
    total = weights.sum(-2).unsqueeze(-1)
    return (weights.mT @ x) / total.clamp(min=torch.finfo(x.dtype).tiny)
