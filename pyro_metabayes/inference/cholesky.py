"""Cholesky factors without waiting for the device, and the normal distribution of a precision."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor L of L L^T = matrix [..., M, M].

    Raises:
        torch.linalg.LinAlgError: on the CPU, a matrix is not positive definite. On an accelerator, where to look
            for that would be to wait, its factor is NaN instead.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.cholesky(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def normal_of_precision(loc: Tensor, precision: Tensor) -> MultivariateNormal:
    """N(loc, precision^-1), loc [..., M], precision [..., M, M]; as MultivariateNormal(loc, precision_matrix=...).

    With J the reversal of rows and columns and J P J = F F^T, P^-1 = L L^T for L = (J F J)^-T, lower triangular.
    """
    upper = cholesky(precision.flip(-2, -1)).flip(-2, -1)
    one = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    normal = MultivariateNormal(loc, scale_tril=torch.linalg.solve_triangular(upper.mT, one, upper=False))
    normal.precision_matrix = precision.expand(*normal.batch_shape, *precision.shape[-2:])  # known: not to be inverted
    return normal
