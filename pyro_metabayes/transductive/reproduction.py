"""A linear classifier that reproduces given scores of points. The scores need not be linear in the features."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.inference.capabilities import LinearHead
from pyro_metabayes.inference.cholesky import cholesky

RIDGE = 1e-4  # ridge of the regression, for features of unit length


def rows_of_scores(head: LinearHead, x: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Compute the smallest weights w_c = (v_c, b_c) with v_c . x_i + b_c = scores_ic at the unmasked points x_i.

    The method is kernel ridge regression with a small ridge. For up to D + 1 points in general position, the classifier
    reproduces the scores almost exactly. For more points, the result is about the least-squares fit.

    Args:
        head: the linear head that combines directions v and offsets b to weights.
        x: [T, N, D], N points of T tasks, with D features.
        scores: [T, N, C], scores of C classes.
        mask: [T, N], False for masked points.

    Returns:
        Weights [T, C, D + 1].
    """
    points = x * mask.unsqueeze(-1)
    on = mask.to(x.dtype)
    kernel = points @ points.mT + on.unsqueeze(-1) * on.unsqueeze(-2)
    diagonal = torch.where(mask, RIDGE, 1.0)  # masked points have a row of zeros
    dual = torch.cholesky_solve(scores * mask.unsqueeze(-1), cholesky(kernel + torch.diag_embed(diagonal.to(x.dtype))))
    return head.rows(dual.mT @ points, dual.sum(1))
