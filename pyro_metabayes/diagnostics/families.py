"""Classification of functions as sines or straight lines, from values on a grid."""

from __future__ import annotations

import torch
from torch import Tensor


def residuals_of_families(x: Tensor, y: Tensor) -> Tensor:
    """Fit a sine and a straight line to each function by least squares, and return the mean squared residuals.

        sine: a sin x + b cos x = A sin(x - phase)
        line: a x + b

    Args:
        x: [G], the grid of G points.
        y: [..., G], values of the functions on the grid.

    Returns:
        Tensor [..., 2], the residual of the sine and then the residual of the line.
    """
    bases = (torch.stack((x.sin(), x.cos()), dim=-1), torch.stack((x, torch.ones_like(x)), dim=-1))
    residuals = []
    for basis in bases:
        orthonormal, _ = torch.linalg.qr(basis)
        residuals.append((y - (y @ orthonormal) @ orthonormal.mT).square().mean(-1))
    return torch.stack(residuals, dim=-1)


def family_of(x: Tensor, y: Tensor) -> Tensor:
    """Return the better fit of each function y on the grid x: 0 for a sine, 1 for a straight line."""
    return residuals_of_families(x, y).argmin(-1)
