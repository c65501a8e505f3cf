"""Cholesky factors without waiting for the device, in our code and in distributions that are built from matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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


class WithoutWaiting(TorchFunctionMode):
    """Inside, `torch.linalg.cholesky` is the function of this file, for whoever calls it.

    torch's normal distributions factorise a precision, or the small matrix of a low rank, when they are built.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (cholesky if function is torch.linalg.cholesky else function)(*args, **(kwargs or {}))
