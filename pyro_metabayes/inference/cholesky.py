"""Cholesky factors without host synchronisation, also inside torch's distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor L of L L^T = matrix [..., M, M].

    Raises:
        torch.linalg.LinAlgError: on the CPU, a matrix is not positive definite. On an accelerator this check would
            synchronise with the host, so the factor is NaN instead.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.cholesky(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


class WithoutWaiting(TorchFunctionMode):
    """Context manager: calls of `torch.linalg.cholesky` are replaced by `cholesky` of this file.

    Constructors of torch's normal distributions call it to factorise a precision or a capacitance matrix.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (cholesky if function is torch.linalg.cholesky else function)(*args, **(kwargs or {}))


def half_log_det(factor: Tensor) -> Tensor:
    """Half the log determinant [...] of L L^T, from factor = L [..., M, M]."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
