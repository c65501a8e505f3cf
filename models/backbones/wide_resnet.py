"""WRN-28-10, the wide residual network of the few-shot literature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones.embedding import embedding

MOST_LAYERS = 1000


class Block(nn.Module):
    """Pre-activation residual block BN-ReLU-Conv3x3-BN-ReLU-Conv3x3, with a 1x1 convolution if the shapes differ."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_inputs)
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        changes = num_inputs != num_outputs or stride > 1
        self.shortcut = nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        y = self.conv2(self.norm2(self.conv1(active)).relu())
        return y + (x if self.shortcut is None else self.shortcut(active))


class Backbone(pyro_metabayes.Backbone):
    """Network WRN-depth-width, which maps images in [0, 1] to feature vectors of length 1 with 64 * width entries.

    The layers are a 3x3 convolution, three groups of blocks, BN-ReLU, global average pooling and L2 normalisation. A
    group has (depth - 4) / 6 pre-activation blocks without dropout. The strides of the groups are 2, 2 and 2. For
    images of height up to 32 the strides are 1, 2 and 2, as in the released code of SIB (Hu et al. 2020). WRN-28-10 for
    3 channels has 36,472,784 parameters. (Zagoruyko and Komodakis 2016.)

    Args:
        input_shape: [channels, height H, width W] of one image.
        depth: number of layers, 6 n + 4 for an integer n.
        width: widening factor k; the groups have 16 k, 32 k and 64 k channels.
        mirror: whether features are averaged over the image and its horizontal flip, in evaluation mode.

    Raises:
        UsageError: the inputs are not [channels, height, width], or a setting is out of range.
    """

    unit_range = True

    def __init__(self, input_shape: tuple[int, ...], depth: int = 28, width: int = 10, mirror: bool = False) -> None:
        super().__init__()
        self.mirror = mirror
        if len(input_shape) != 3:
            raise UsageError(
                f"expected images [channels, height, width] for backbone=wide_resnet, got inputs of shape "
                f"{input_shape}; set backbone=identity for features"
            )
        if not 10 <= depth <= MOST_LAYERS or (depth - 4) % 6 or width < 1:
            raise UsageError(
                f"expected backbone.depth = 6 n + 4 from 10 to {MOST_LAYERS} and backbone.width >= 1, got "
                f"depth={depth}, width={width}"
            )
        channels, height, _ = input_shape
        widths = [16, 16 * width, 32 * width, 64 * width]
        first_stride = 1 if height <= 32 else 2
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        blocks = []
        for group, stride in enumerate((first_stride, 2, 2)):
            inputs, outputs = widths[group], widths[group + 1]
            blocks.append(Block(inputs, outputs, stride))
            blocks += [Block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.num_features = widths[-1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolution weights from N(0, 2 / (k^2 output channels)) for kernel size k, as in SIB's code."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return embedding(self._features, x, self.mirror and not self.training)

    def _features(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.stem(x))).relu().mean((-2, -1))
