"""Cholesky factorisation without host synchronisation, also inside torch's distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def cholesky(matrix: Tensor) -> Tensor:
    """Compute the lower Cholesky factor L of square matrices [..., M, M], with L L^T = matrix.

    Raises:
        torch.linalg.LinAlgError: a matrix on the CPU is not positive definite. On an accelerator, where an error would
            need host synchronisation, the factor is NaN instead.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.cholesky(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def symmetric(matrix: Tensor) -> Tensor:
    """Return (M + M^T) / 2: rounding errors of a product such as X^T X differ between M and M^T."""
    return 0.5 * (matrix + matrix.mT)


class WithoutWaiting(TorchFunctionMode):
    """Context manager: replace `torch.linalg.cholesky`, which waits for the device, by `cholesky` of this file.

    Some normal distributions of torch call `torch.linalg.cholesky` in their constructor.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (cholesky if function is torch.linalg.cholesky else function)(*args, **(kwargs or {}))


def half_log_det(factor: Tensor) -> Tensor:
    """Compute half the log determinant of L L^T from Cholesky factors L [..., M, M]."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
