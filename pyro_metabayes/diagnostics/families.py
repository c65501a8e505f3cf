"""Classifies sampled functions by family: sines or straight lines."""

from __future__ import annotations

import torch
from torch import Tensor


def residuals_of_families(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared residual [..., F] of the least-squares fit of each family, in the order of sine_and_line.FAMILIES.

    A sine is a sin x + b cos x = A sin(x - phase), a line is a x + b; each has two parameters.

    Args:
        x: [G], a grid.
        y: [..., G], values of functions on the grid.
    """
    bases = (torch.stack((x.sin(), x.cos()), dim=-1), torch.stack((x, torch.ones_like(x)), dim=-1))
    residuals = []
    for basis in bases:
        orthonormal, _ = torch.linalg.qr(basis)
        residuals.append((y - (y @ orthonormal) @ orthonormal.mT).square().mean(-1))
    return torch.stack(residuals, dim=-1)


def family_of(x: Tensor, y: Tensor) -> Tensor:
    """Index [...] into FAMILIES of the family that fits each function best. Args: as `residuals_of_families`."""
    return residuals_of_families(x, y).argmin(-1)
