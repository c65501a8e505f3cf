"""The probability integral transform (PIT) of predictions, randomised if labels are discrete."""

from __future__ import annotations

import torch
from torch import Tensor

Bounds = tuple[Tensor, Tensor]  # predictive CDF F just below the label y, and at y; equal for a continuous label


def share_below(bounds: Bounds, x: float) -> Tensor:
    """Compute P(u <= x) for the randomised PIT u = F(y-) + v (F(y) - F(y-)) with v ~ U(0, 1).

    F is the predictive CDF, y the label, and F(y-) = P(Y < y). For calibrated predictions u is uniform, even for
    discrete labels. The probability over v is computed exactly. For a continuous label u = F(y), and the result is 0
    or 1. (Czado, Gneiting and Held 2009)

    Args:
        bounds: F(y-) and F(y), two tensors of the same shape.
        x: a number from 0 to 1.

    Returns:
        Tensor with the shape of a bound, 0 to 1.
    """
    low, high = bounds
    width = high - low
    return torch.where(width > 0, ((x - low) / width).clamp(0, 1), (high <= x).to(high.dtype))


def central_share(bounds: Bounds, level: float) -> Tensor:
    """Compute P((1 - level) / 2 < u <= (1 + level) / 2), the coverage of the central interval with this level.

    u is the randomised PIT (`share_below`), F the predictive CDF, y the label, and F(y-) = P(Y < y).

    Args:
        bounds: F(y-) and F(y), two tensors of the same shape.
        level: nominal coverage, 0 to 1.

    Returns:
        Tensor with the shape of a bound, 0 to 1.
    """
    return share_below(bounds, (1 + level) / 2) - share_below(bounds, (1 - level) / 2)


def pit_histogram(bounds: Bounds, num_bins: int) -> Tensor:
    """Compute the probability of the randomised PIT u in each of num_bins equal bins of [0, 1].

    Args:
        bounds: F(y-) and F(y) (`share_below`), two tensors of the same shape [...].
        num_bins: number of bins.

    Returns:
        Tensor [..., num_bins]; for calibrated predictions the mean over labels is 1 / num_bins in every bin.
    """
    inner = [share_below(bounds, edge / num_bins) for edge in range(1, num_bins)]
    ends = torch.zeros_like(bounds[1]), torch.ones_like(bounds[1])
    return torch.stack((ends[0], *inner, ends[1]), -1).diff(dim=-1)
