"""Conv-4, a small convolutional backbone of the few-shot literature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones.embedding import embedding


def block(num_inputs: int, num_filters: int, relu: bool) -> nn.Sequential:
    """Construct a block of Conv3x3 (no bias), batch norm, 2x2 max-pool and, if `relu`, ReLU.

    Pooling before the ReLU is cheaper than after it, and gives the same output.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(num_inputs, num_filters, 3, padding=1, bias=False),
        nn.BatchNorm2d(num_filters),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2), *([nn.ReLU()] if relu else []))


class Backbone(pyro_metabayes.Backbone):
    """Network of four convolutional blocks, which maps N images in [0, 1] to D features each [N, D].

    The output of the last block is flattened and scaled to unit length. With 64 filters and 3 channels the network has
    112,832 parameters.

    Args:
        input_shape: [channels, height H, width W] of one image.
        num_filters: number of filters of each block.
        last_relu: whether the last block has a ReLU, as in SIB's released code; Gidaris and Komodakis omit it.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: the inputs are not images, or a setting is out of range.
    """

    unit_range = True

    def __init__(
        self, input_shape: tuple[int, ...], num_filters: int = 64, last_relu: bool = True, mirror: bool = False
    ) -> None:
        super().__init__()
        self.mirror = mirror
        if len(input_shape) != 3:
            raise UsageError(
                f"expected images [channels, height, width] for backbone=conv4, got inputs of shape {input_shape}; "
                "set backbone=identity for features"
            )
        if num_filters < 1:
            raise UsageError(f"expected backbone.num_filters >= 1, got {num_filters}")
        channels, height, width = input_shape
        widths = [channels, *[num_filters] * 4]
        self.blocks = nn.Sequential(*[block(widths[i], widths[i + 1], last_relu or i < 3) for i in range(4)])
        self.num_features = num_filters * (height // 16) * (width // 16)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return embedding(self._features, x, self.mirror and not self.training)

    def _features(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)
