"""Random numbers that do not depend on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class NoiseOfCpu(TorchDispatchMode):
    """Context manager in which random numbers are drawn on the CPU, and then moved to the device of the operation.

    A learner on the CPU and its copy on another device make the same draws in the same order, so a seeded generator of
    the CPU gives both the same noise. torch tags such operations, including dropout, as nondeterministic_seeded. All of
    them pass through the dispatcher, also inside the transforms of torch.func.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        draws = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if func._schema.is_mutable:  # normal_, uniform_ and the like fill their first argument
            return args[0].copy_(draws)
        device = _asked_for(args, kwargs)
        return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, draws)


def _asked_for(args: Any, kwargs: Any) -> torch.device:
    """Return the device of a draw: the argument `device`, else the device of the first tensor, else the CPU."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    return kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))


def _on_cpu(value: Any) -> Any:
    """Move a tensor to the CPU, and replace a device by the CPU; other values are returned unchanged."""
    if isinstance(value, Tensor):
        return value.cpu()
    return torch.device("cpu") if isinstance(value, torch.device) else value
