"""Precision matrices I + V V^T of Gaussians, with fast solves and fast draws of many samples."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyro_metabayes.inference.cholesky import cholesky, half_log_det
from pyro_metabayes.inference.laplace import factor_of_points

DENSE = 2048  # largest number of coordinates for which the precision is stored as a full matrix


class Precision(Protocol):
    """Interface of the precision matrices [T, P, P] of Gaussians over P coordinates, for T tasks.

    Attributes:
        log_det: [T], half the log determinant of the precision.
    """

    log_det: Tensor

    def root(self, u: Tensor) -> Tensor:
        """Compute R u [L, T, P] for L standard normal draws u [L, T, P]; R R^T is the covariance."""

    def solve(self, b: Tensor) -> Tensor:
        """Multiply the covariance of each task by b [T, P], one vector per task."""


def precision_of(roots: list[Tensor]) -> Precision:
    """Build the precision I + (1/S) sum_s V_s V_s^T of T tasks with P coordinates.

    The result factorises a P x P matrix if P <= DENSE (2048), otherwise an M x M matrix.

    Args:
        roots: the S matrices V_s [T, P, M]; S must be 1 if P > DENSE.
    """
    # A diverging model yields a poor score, not an exception of the factorisation.
    roots = [root.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for root in roots]
    num_coordinates = roots[0].shape[1]
    if num_coordinates > DENSE:
        assert len(roots) == 1
        return ThinPrecision(roots[0])
    one = torch.eye(num_coordinates, dtype=roots[0].dtype, device=roots[0].device)
    return DensePrecision(one + sum(root @ root.mT for root in roots) / len(roots))


class DensePrecision:
    """Precision stored as a full matrix per task, [T, P, P]."""

    def __init__(self, matrix: Tensor) -> None:
        self._factor = cholesky(matrix)
        self.log_det = half_log_det(self._factor)

    def root(self, u: Tensor) -> Tensor:
        columns = torch.linalg.solve_triangular(self._factor.mT, u.movedim(0, -1), upper=True)
        return columns.movedim(-1, 0)

    def solve(self, b: Tensor) -> Tensor:
        return torch.cholesky_solve(b.unsqueeze(-1), self._factor).squeeze(-1)


class ThinPrecision:
    """Precision I + V V^T for many coordinates P, stored as V [T, P, M] and the Cholesky factor L of I + V^T V.

    A root of the covariance is R = I - V L^-T (I + L)^-1 V^T, as in `inference.laplace.LowRankPrecision`.
    """

    def __init__(self, root: Tensor) -> None:
        self._v, self._factor = root, factor_of_points(root)
        self.log_det = half_log_det(self._factor)

    def root(self, u: Tensor) -> Tensor:
        one = torch.eye(self._factor.shape[-1], dtype=u.dtype, device=u.device)
        columns = u.movedim(0, -1)  # [T, P, L]
        along = torch.linalg.solve_triangular(self._factor + one, self._v.mT @ columns, upper=False)
        along = torch.linalg.solve_triangular(self._factor.mT, along, upper=True)
        return (columns - self._v @ along).movedim(-1, 0)

    def solve(self, b: Tensor) -> Tensor:
        along = torch.cholesky_solve(self._v.mT @ b.unsqueeze(-1), self._factor)
        return b - (self._v @ along).squeeze(-1)
