"""An upper limit on the memory of new tensors, while a learner is built from untrusted settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_metabayes.errors import UsageError

SLACK = 2**24  # bytes that are allowed beyond four times the file size, for buffers and temporary values


class Allowance(TorchDispatchMode):
    """Context manager that limits the total memory of the tensors that torch creates from given sizes.

    The size of each tensor is computed on the meta device before memory is allocated.

    Args:
        most: largest number of bytes of all tensors together.
        claimed_by: beginning of the error message, which names the source of the settings.

    Raises:
        UsageError: the limit is exceeded.
    """

    def __init__(self, most: int, claimed_by: str) -> None:
        super().__init__()
        self.left, self.claimed_by = most, claimed_by

    @classmethod
    def of_file(cls, file: Path) -> Self:
        """Return the limit for building the learner of a checkpoint file: four times the file size plus 16 MiB."""
        claimed_by = "expected a checkpoint of this model and guide, got another: its specification"
        return cls(4 * file.stat().st_size + SLACK, claimed_by)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _makes_from_sizes(func, args):
            self._take(func(*args, **{**kwargs, "device": torch.device("meta")}))
        return func(*args, **kwargs)

    def _take(self, claimed: Any) -> None:
        self.left -= claimed.numel() * claimed.element_size()
        if self.left < 0:
            raise UsageError(
                f"{self.claimed_by} asks for more memory than a file of this size can fill; use only files from a "
                "source that you trust"
            )


def _makes_from_sizes(func: Any, args: Any) -> bool:
    takes_device = any(argument.name == "device" for argument in func._schema.arguments)
    return takes_device and not any(isinstance(value, Tensor) for value in args)
