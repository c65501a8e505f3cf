"""Logits from squared distances to class centroids, and the vector-Jacobian product with respect to the centroids."""

from __future__ import annotations

from torch import Tensor


def distance_logits(means: Tensor, x: Tensor) -> Tensor:
    """Compute logits m_c . x_i - 1/2 |m_c|^2, which equal -1/2 |x_i - m_c|^2 up to the same term for all classes.

    Args:
        means: [T, C, D], centroids m of C classes, for T tasks and D features.
        x: [T, N, D], N points x_i per task.

    Returns:
        Tensor [T, N, C].
    """
    return x @ means.mT - 0.5 * means.square().sum(-1).unsqueeze(-2)


def distance_pullback(means: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """Compute the vector-Jacobian product of `distance_logits` with respect to the centroids m.

    The product is sum_i (d logits_i / d m)^T g_i over the points i. For class c, this is sum_i g_ic (x_i - m_c).

    Args:
        means: [T, C, D], centroids m of C classes, for T tasks and D features.
        x: [T, N, D], N points x_i per task.
        cotangent: [T, N, C], the cotangent g of the logits.

    Returns:
        Tensor [T, C, D].
    """
    return cotangent.mT @ x - cotangent.sum(1).unsqueeze(-1) * means
