"""ResNet-12, the residual backbone of the few-shot literature, introduced with TADAM."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones.embedding import embedding


class Block(nn.Module):
    """Residual block of three layers Conv3x3-BN with swish between the layers.

    The shortcut is a 1x1 convolution with BN. The sum passes through swish and, with `pool`, a 2x2 max-pool.
    """

    def __init__(self, num_inputs: int, num_outputs: int, pool: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [nn.SiLU()] if number else []
            inputs = num_outputs if number else num_inputs
            layers += [nn.Conv2d(inputs, num_outputs, 3, padding=1, bias=False), nn.BatchNorm2d(num_outputs)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(num_inputs, num_outputs, 1, bias=False), nn.BatchNorm2d(num_outputs))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = functional.silu(self.layers(x) + self.shortcut(x))
        return functional.max_pool2d(y, 2) if self.pool else y


class Backbone(pyro_metabayes.Backbone):
    """Network of four residual blocks, which maps N images in [0, 1] to D features each [N, D].

    The output of the last block is averaged over the image and scaled to unit length. This is the network of TADAM
    (Oreshkin et al. 2018), whose code has three max-pools. (Residual blocks: He et al. 2016.)

    Args:
        input_shape: [channels, height H, width W] of one image.
        num_filters: number of filters of the first block; the following blocks have 2, 4 and 8 times as many.
        num_pools: number of blocks, from the first, that halve the image by a max-pool.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: the inputs are not images, or a setting is out of range.
    """

    unit_range = True

    def __init__(
        self, input_shape: tuple[int, ...], num_filters: int = 64, num_pools: int = 3, mirror: bool = False
    ) -> None:
        super().__init__()
        self.mirror = mirror
        if len(input_shape) != 3:
            raise UsageError(
                f"expected images [channels, height, width] for backbone=resnet12, got inputs of shape {input_shape}; "
                "set backbone=identity for features"
            )
        if num_filters < 1 or not 0 <= num_pools <= 4:
            raise UsageError(
                "expected backbone.num_filters >= 1 and 0 <= backbone.num_pools <= 4, got "
                f"num_filters={num_filters}, num_pools={num_pools}"
            )
        widths = [input_shape[0], *(num_filters * factor for factor in (1, 2, 4, 8))]
        blocks = [Block(*shape, pool=number < num_pools) for number, shape in enumerate(pairwise(widths))]
        self.blocks = nn.Sequential(*blocks)
        self.num_features = widths[-1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return embedding(self._features, x, self.mirror and not self.training)

    def _features(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean((-2, -1))
