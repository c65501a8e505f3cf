"""Backbones: published numbers of parameters, layers, and features of any image."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pyro_metabayes.backbone import TorchBackbone
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones import conv4, resnet12, wide_resnet


def count(backbone: nn.Module) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    """Conv-4-64 and WRN-28-10 of SIB's release."""
    assert count(conv4.Backbone((3, 32, 32))) == 112_832
    assert count(wide_resnet.Backbone((3, 32, 32))) == 36_472_784


def test_resnet12_has_the_layers_that_it_names() -> None:
    """Twelve 3x3 convolutions and four 1x1 shortcuts, a batch norm behind each."""
    widths = [3, 64, 128, 256, 512]
    expected = sum(
        9 * (before * after + 2 * after * after) + before * after + 4 * 2 * after for before, after in pairwise(widths)
    )
    backbone = resnet12.Backbone((3, 32, 32))
    assert count(backbone) == expected
    assert sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in backbone.modules()) == 12


SMALL = {
    "conv4": (conv4.Backbone, {"num_filters": 4}),
    "resnet12": (resnet12.Backbone, {"num_filters": 2}),
    "wide_resnet": (wide_resnet.Backbone, {"depth": 10, "width": 1}),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 84, 84)])
def test_features_have_unit_length_and_images_do_not_see_each_other(name: str, shape: tuple[int, ...]) -> None:
    target, settings = SMALL[name]
    backbone = target(shape, **settings).eval()
    images = torch.rand(3, *shape)
    features = backbone(images)
    assert features.shape == (3, backbone.num_features)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(backbone(images[1:2]), features[1:2])
    assert (features[0] - features[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_is_trained(name: str) -> None:
    target, settings = SMALL[name]
    backbone = target((3, 32, 32), **settings)
    (backbone(torch.rand(4, 3, 32, 32)) * torch.randn(backbone.num_features)).sum().backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


def test_a_small_image_keeps_its_resolution_in_the_first_group() -> None:
    """The map before the mean: 8 x 8 at 32 pixels, 11 x 11 at 84."""
    for side, expected in ((32, 8), (84, 11)):
        backbone = wide_resnet.Backbone((3, side, side), depth=10, width=1)
        assert backbone.blocks(backbone.stem(torch.rand(1, 3, side, side))).shape[-1] == expected


@pytest.mark.parametrize(
    ("target", "shape", "settings", "message"),
    [
        (wide_resnet.Backbone, (640,), {}, "expected images .* for backbone=wide_resnet"),
        (wide_resnet.Backbone, (3, 32, 32), {"depth": 27}, "expected backbone.depth = 6 n"),
        (wide_resnet.Backbone, (3, 32, 32), {"width": 0}, "backbone.width >= 1, got depth=28, width=0"),
        (resnet12.Backbone, (640,), {}, "expected images .* for backbone=resnet12"),
        (resnet12.Backbone, (3, 32, 32), {"num_pools": 5}, "num_pools <= 4, got num_filters=64, num_pools=5"),
    ],
)
def test_a_wrong_setting_is_named(
    target: type[nn.Module], shape: tuple[int, ...], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        target(shape, **settings)


def test_counting_the_features_of_a_module_leaves_its_modes_and_statistics() -> None:
    norm = nn.BatchNorm1d(4)
    module = nn.Sequential(nn.Flatten(), norm, nn.Dropout())
    module[2].eval()
    assert TorchBackbone(module, [2, 2]).num_features == 4
    assert module.training and norm.training and not module[2].training
    assert norm.num_batches_tracked == 0
