"""Logits from squared distances to class centroids, and their pullback to the centroids."""

from __future__ import annotations

from torch import Tensor


def distance_logits(means: Tensor, x: Tensor) -> Tensor:
    """m_c . x_i - 1/2 |m_c|^2 [T, N, C] = -1/2 |x_i - m_c|^2 up to a term that is equal for all classes.

    Args:
        means: m [T, C, D].
        x: points [T, N, D].
    """
    return x @ means.mT - 0.5 * means.square().sum(-1).unsqueeze(-2)


def distance_pullback(means: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """sum_i (d distance_logits_i / d m)^T g_i = sum_i g_ic (x_i - m_c) [T, C, D], for cotangents g [T, N, C]."""
    return cotangent.mT @ x - cotangent.sum(1).unsqueeze(-1) * means
