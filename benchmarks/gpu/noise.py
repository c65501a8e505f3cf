"""The same random numbers on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class NoiseOfCpu(TorchDispatchMode):
    """Every operation that draws random numbers runs on the CPU, from the CPU's generator; its results are moved.

    A seeded CPU generator then gives a learner on the CPU and its copy on another device the same noise: both ask for
    the same draws in the same order. torch marks such operations itself (nondeterministic_seeded), dropout among them,
    and the dispatcher is where all of them pass, inside torch.func's transforms, too.
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
    """Where the draw belongs: the device that it names, else that of its first tensor, else the CPU."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    return kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))


def _on_cpu(value: Any) -> Any:
    """Tensors are moved, and a device to make them on is the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    return torch.device("cpu") if isinstance(value, torch.device) else value
