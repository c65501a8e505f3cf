"""An upper limit on the memory of the tensors that untrusted settings create."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_metabayes.errors import UsageError

SLACK = 2**24  # bytes beyond a multiple of the file: buffers and temporary values of small parts


class Allowance(TorchDispatchMode):
    """Inside, torch functions that make a new tensor from sizes share a number of bytes.

    The size is found on the meta device, before anything is allocated. The tensors themselves are real, so that parts
    may read values while they are built, as the networks of Pyro do.

    Args:
        most: number of bytes, of all tensors together.
        claimed_by: what claims them, for the message.

    Raises:
        UsageError: more is claimed.
    """

    def __init__(self, most: int, claimed_by: str) -> None:
        super().__init__()
        self.left, self.claimed_by = most, claimed_by

    @classmethod
    def of_file(cls, file: Path) -> Self:
        """Four times the size of a checkpoint, and SLACK: what the specification in it may claim."""
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
            raise UsageError(f"{self.claimed_by} claims parts that are larger than the file itself")


def _makes_from_sizes(func: Any, args: Any) -> bool:
    takes_device = any(argument.name == "device" for argument in func._schema.arguments)
    return takes_device and not any(isinstance(value, Tensor) for value in args)
