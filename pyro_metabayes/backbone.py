"""The network that maps inputs to features."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_metabayes.errors import UsageError
from pyro_metabayes.specification.recorded import Recorded


class Backbone(Recorded, nn.Module):
    """Features [N, D] of inputs [N, *X]. A new backbone takes `input_shape` X and defines `forward`.

    Attributes:
        num_features: D.
        unit_range: whether the inputs are images in [0, 1]; predictions then refuse others.
        scale_invariant: whether c x and x have the same features for every c > 0; predictions then take inputs [D] of
            every scale that float64 represents.
    """

    num_features: int
    unit_range: bool = False
    scale_invariant: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, D]."""
        raise NotImplementedError


class TorchBackbone(Backbone):
    """The features [N, D] that any torch module makes of inputs [N, *X].

    D is found by a pass of one input of zeros.

    Args:
        module: the torch module. It is in evaluation mode at all times, as every backbone is.
        input_shape: *X.
        normalise: whether features are scaled to unit length, as `head=cosine` takes them.

    Raises:
        UsageError: the module does not take such inputs, or does not return [N, D], or lets inputs see each other.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int], normalise: bool = True) -> None:
        super().__init__()
        if any(isinstance(layer, _BatchNorm) and not layer.track_running_stats for layer in module.modules()):
            raise UsageError(
                "expected batch norm with running statistics in the backbone, got track_running_stats=False, with "
                "which the points of all tasks see each other; keep statistics, or take nn.GroupNorm"
            )
        self.module, self.normalise = module, normalise
        self.num_features = _num_features(module, input_shape)

    def forward(self, x: Tensor) -> Tensor:
        features = self.module(x)
        return functional.normalize(features, dim=-1) if self.normalise else features


@torch.no_grad()
def _num_features(module: nn.Module, input_shape: Sequence[int]) -> int:
    """D, from one input of zeros."""
    like = next((value for value in module.parameters() if value.device.type != "meta"), torch.zeros(()))
    zeros = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    try:
        shape = list(module.eval()(zeros).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(f"expected a backbone of inputs [N, {_listed(input_shape)}], got an error: {reason}") from None
    if len(shape) != 2 or shape[0] != 1:
        raise UsageError(
            f"expected features [N, D] of inputs [N, {_listed(input_shape)}], got {shape} for N = 1; end the backbone "
            "with nn.Flatten()"
        )
    return int(shape[1])


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def note_held_statistics(backbone: nn.Module) -> None:
    """Say that a backbone with batch norm is trained with the statistics that it has."""
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if trained and any(isinstance(layer, _BatchNorm) for layer in backbone.modules()):
        print(
            "note: the statistics of the backbone's batch norm stay as they are, since batch statistics would let "
            "tasks see each other; pretrain the backbone, or take nn.GroupNorm",
            file=sys.stderr,
        )
