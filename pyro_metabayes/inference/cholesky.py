"""Cholesky factors without host synchronisation, in this package and in torch distributions built from matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor L of L L^T = matrix [..., M, M].

    Raises:
        torch.linalg.LinAlgError: on the CPU, a matrix is not positive definite. On an accelerator that check would
            make the host wait; the factor is NaN instead.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.cholesky(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


class WithoutWaiting(TorchFunctionMode):
    """Context manager: every call of `torch.linalg.cholesky` is one of the function of this file.

    Constructors of torch's normal distributions factorise a precision, or the capacitance matrix of a low rank.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (cholesky if function is torch.linalg.cholesky else function)(*args, **(kwargs or {}))
