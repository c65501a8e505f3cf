"""Features of backbone=task_frame with backbone.points=support: points centred and whitened by the support set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.cholesky import cholesky
from pyro_metabayes.prediction.scale import SHORTEST


class Coordinates:
    """Coordinates of points, such that inner products with the coordinates of the M support points X equal a kernel k:

        k(x_i, x_j) = (1 - a) x_i . x_j + a kappa(x_i, x_j).

    kappa is x_i . (X^T X + lambda I)^-1 x_j, normalised so that kappa(x_i, x_i) = 1. The coordinates of the support
    points are the rows of the Cholesky factor L of k(X, X) + jitter I. The coordinates of another point x are L^-1 k(X,
    x) and one more number. This number makes the squared length of the coordinates 1 + jitter.

    Args:
        x: the support points X of T tasks with D features [T, M, D], of unit length; 0 for masked points.
        gram: X X^T [T, M, M].
        settings: a and lambda [T, 1, 1].
        mask: [T, M, 1], 1 for unmasked support points.
        jitter: added to the diagonal of k(X, X).
    """

    def __init__(self, x: Tensor, gram: Tensor, settings: tuple[Tensor, Tensor], mask: Tensor, jitter: float) -> None:
        self._x, self._jitter = x, jitter
        share, ridge = settings
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self._inverse = torch.cholesky_solve(identity, cholesky(gram + ridge * identity))
        whitened, length = self._whitened(gram, gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-1))
        self._plain, self._scale = 1 - share, share * ridge * length.mT
        kernel = self._kernel(gram, whitened)
        kernel = (kernel + kernel.mT) / 2
        self._factor = cholesky(kernel + torch.diag_embed(jitter + 1 - mask.squeeze(-1)))
        self.support = functional.pad(self._factor * mask, (0, 1))

    def of(self, x: Tensor, directed: Tensor) -> Tensor:
        """Compute the coordinates of other points, scaled to unit length first.

        The scaling is applied to the products with the support points, a smaller matrix.

        Args:
            x: N points with D features of each of T tasks [T, N, D], of any length.
            directed: [T, N, 1], false for inputs of zeros, whose coordinates are 0.

        Returns:
            Tensor [T, N, M + 1], for M support points.
        """
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = directed / length.clamp(min=SHORTEST)
        inner, square = (x @ self._x.mT) * scale, (length * scale).square()
        kernel = self._kernel(inner, self._whitened(inner, square)[0])
        along = torch.linalg.solve_triangular(self._factor, kernel.mT, upper=False).mT
        left = (1 + self._jitter) * square - along.square().sum(-1, keepdim=True)
        return torch.cat((along, left.clamp(min=0).sqrt()), -1)

    def _whitened(self, inner: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Compute x . (X^T X + lambda I)^-1 X^T / l [T, N, M], and 1 / l [T, N, 1], for N points x.

        X are the M support points of each of T tasks, and l^2 = lambda x . (X^T X + lambda I)^-1 x.
        """
        solved = inner @ self._inverse
        length = (square - (solved * inner).sum(-1, keepdim=True)).clamp(min=1e-8).rsqrt()
        return solved * length, length

    def _kernel(self, inner: Tensor, whitened: Tensor) -> Tensor:
        return torch.addcmul(self._plain * inner, self._scale, whitened)


class SupportFrame:
    """Encoder of the queries of T tasks whose support sets have already been encoded (backbone=task_frame).

    Args:
        unit: function that scales inputs of D features to unit length.
        data: the tasks; their queries are not used.
        coordinates: coordinates relative to the centred support points.
        shrunk: vector that is subtracted from the inputs of unit length [T, 1, D].
        frame: statistics of the tasks [T, 3], stored as auxiliary["frame"].

    Attributes:
        support: the tasks with features of the support points, without queries.
    """

    def __init__(
        self, unit: Callable[[Tensor], Tensor], data: Observed, coordinates: Coordinates, shrunk: Tensor, frame: Tensor
    ) -> None:
        self._unit, self._coordinates, self._shrunk = unit, coordinates, shrunk
        features = coordinates.support
        none: dict[str, Any] = {"query_x": features[:, :0], "query_mask": data.query_mask[:, :0]}
        self.support = replace(data, support_x=features, **none, auxiliary=data.auxiliary | {"frame": frame})

    def embed(self, x: Tensor) -> Tensor:
        """Compute features [T, Q, S + 1] of Q query inputs of D features in T tasks [T, Q, D], for S support points."""
        x = self._unit(x)
        directed = torch.linalg.vector_norm(x, dim=-1, keepdim=True) > 0
        return self._coordinates.of(x - self._shrunk, directed)
