"""The probability integral transform (PIT) of predictions, randomised where labels are discrete."""

from __future__ import annotations

import torch
from torch import Tensor

Bounds = tuple[Tensor, Tensor]  # F(y-) and F(y), equal for a continuous label


def share_below(bounds: Bounds, x: float) -> Tensor:
    """P(u <= x) of the randomised PIT u = F(y-) + v (F(y) - F(y-)), v ~ U(0, 1).

    For calibrated predictions u is uniform, even for discrete labels. The probability over v is computed exactly. For
    a continuous label u = F(y), and the result is 0 or 1. (Czado, Gneiting and Held 2009)

    Args:
        bounds: F(y-) and F(y), two tensors of one shape.
        x: 0 to 1.

    Returns:
        Tensor with the shape of a bound, 0 to 1.
    """
    low, high = bounds
    width = high - low
    return torch.where(width > 0, ((x - low) / width).clamp(0, 1), (high <= x).to(high.dtype))


def central_share(bounds: Bounds, level: float) -> Tensor:
    """P((1 - level) / 2 < u <= (1 + level) / 2), the coverage of the central interval of this level.

    Args:
        bounds: F(y-) and F(y), two tensors of one shape.
        level: 0 to 1.

    Returns:
        Tensor with the shape of a bound, 0 to 1.
    """
    return share_below(bounds, (1 + level) / 2) - share_below(bounds, (1 - level) / 2)


def pit_histogram(bounds: Bounds, num_bins: int) -> Tensor:
    """Probability of u in each of num_bins equal bins [..., num_bins]; 1 / num_bins for calibrated predictions."""
    inner = [share_below(bounds, edge / num_bins) for edge in range(1, num_bins)]
    ends = torch.zeros_like(bounds[1]), torch.ones_like(bounds[1])
    return torch.stack((ends[0], *inner, ends[1]), -1).diff(dim=-1)
