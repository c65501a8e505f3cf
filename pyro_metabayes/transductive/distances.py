"""Logits from squared distances to class centroids, and their vector-Jacobian product with respect to the centroids."""

from __future__ import annotations

from torch import Tensor


def distance_logits(means: Tensor, x: Tensor) -> Tensor:
    """Compute logits m_c . x_i - 1/2 |m_c|^2, equal to -1/2 |x_i - m_c|^2 up to a term that is equal for all classes.

    Args:
        means: centroids m of C classes [T, C, D], for T tasks and D features.
        x: N points x_i per task [T, N, D].

    Returns:
        Tensor [T, N, C].
    """
    return x @ means.mT - 0.5 * means.square().sum(-1).unsqueeze(-2)


def distance_pullback(means: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """Compute the vector-Jacobian product of `distance_logits` with respect to the centroids m.

    The product is sum_i (d logits_i / d m)^T g_i. Its entry for class c is sum_i g_ic (x_i - m_c), over points i.

    Args:
        means: centroids m of C classes [T, C, D], for T tasks and D features.
        x: N points x_i per task [T, N, D].
        cotangent: g [T, N, C].

    Returns:
        Tensor [T, C, D].
    """
    return cotangent.mT @ x - cotangent.sum(1).unsqueeze(-1) * means
