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
    """Network that maps N inputs [N, *X] to D features each [N, D].

    A new backbone has a constructor argument `input_shape`, the shape *X of one input, and defines `forward`.

    Attributes:
        num_features: number of features D; None if it depends on the task.
        unit_range: whether the inputs are images in [0, 1]. Predictions then refuse values outside this range.
        pretrained: whether the weights were trained elsewhere. A run then does not pretrain them.
        scale_invariant: whether the inputs x and c x have the same features for every number c > 0. Predictions then
            accept input vectors of any scale that float64 represents.
    """

    num_features: int | None
    unit_range: bool = False
    pretrained: bool = False
    scale_invariant: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of N inputs x [N, *X]."""
        raise NotImplementedError


class TorchBackbone(Backbone):
    """Backbone made from any torch module that maps N inputs [N, *X] to D features each [N, D].

    D is read from the output of the module for one input of zeros.

    Args:
        module: the torch module. It always stays in evaluation mode, like every backbone.
        input_shape: the shape *X of one input.
        normalise: whether feature vectors are scaled to unit length, as `head=cosine` requires.

    Raises:
        UsageError: the module does not accept inputs [N, *X], does not return features [N, D], or has a batch norm
            layer without running statistics.
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int], normalise: bool = True) -> None:
        super().__init__()
        if any(isinstance(layer, _BatchNorm) and not layer.track_running_stats for layer in module.modules()):
            raise UsageError(
                "expected batch norm with running statistics in the backbone, got track_running_stats=False, which "
                "makes features depend on other tasks; set track_running_stats=True, or use nn.GroupNorm"
            )
        self.module, self.normalise = module, normalise
        self.num_features = num_features_of(module, input_shape)

    def forward(self, x: Tensor) -> Tensor:
        features = self.module(x)
        return functional.normalize(features, dim=-1) if self.normalise else features


@torch.no_grad()
def num_features_of(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the number of features D of a module, read from the output for one input of zeros.

    The module is in evaluation mode meanwhile, so that running statistics do not change.

    Raises:
        UsageError: the module does not map inputs [N, *X] of shape *X = input_shape to features [N, D].
    """
    modes = [(part, part.training) for part in module.modules()]
    like = next((value for value in module.parameters() if value.device.type != "meta"), torch.zeros(()))
    zeros = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    try:
        shape = list(module.eval()(zeros).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(
            f"expected the backbone to accept inputs [N, {_listed(input_shape)}], got the error: {reason}; change the "
            "backbone or the input shape"
        ) from None
    finally:
        for part, training in modes:
            part.training = training
    if len(shape) != 2 or shape[0] != 1:
        raise UsageError(
            f"expected the backbone to map inputs [N, {_listed(input_shape)}] to features [N, D], got the shape "
            f"{shape} for N = 1; end the backbone with nn.Flatten()"
        )
    return int(shape[1])


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def note_held_statistics(backbone: nn.Module) -> None:
    """If a backbone with batch norm is trained, print a note that its running statistics stay fixed."""
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if trained and any(isinstance(layer, _BatchNorm) for layer in backbone.modules()):
        print(
            "note: the running statistics of the backbone's batch norm stay fixed, since batch statistics would make "
            "the tasks of a batch depend on each other; pretrain the backbone, or use nn.GroupNorm",
            file=sys.stderr,
        )
