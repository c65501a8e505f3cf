"""The probability integral transform (PIT) of predictions, randomised for discrete labels."""

from __future__ import annotations

import torch
from torch import Tensor

Bounds = tuple[Tensor, Tensor]  # predictive CDF F just below the label y, and at y; equal for a continuous label


def share_below(bounds: Bounds, x: float) -> Tensor:
    """Compute P(u <= x) for the randomised PIT u = F(y-) + v (F(y) - F(y-)) with v ~ U(0, 1).

    F is the predictive CDF, y the label, and F(y-) = P(Y < y). For calibrated predictions, u is uniform, even with
    discrete labels. The probability over v is exact. A continuous label has u = F(y), so the result is 0 or 1. (Czado,
    Gneiting and Held 2009.)

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
    """Compute the coverage of the central interval of a level, P((1 - level) / 2 < u <= (1 + level) / 2).

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
        Tensor [..., num_bins]. For calibrated predictions, the mean over labels is 1 / num_bins in every bin.
    """
    inner = [share_below(bounds, edge / num_bins) for edge in range(1, num_bins)]
    ends = torch.zeros_like(bounds[1]), torch.ones_like(bounds[1])
    return torch.stack((ends[0], *inner, ends[1]), -1).diff(dim=-1)
