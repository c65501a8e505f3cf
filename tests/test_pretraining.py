"""Does pretraining learn, in either precision, and from its own seed alone?"""

from __future__ import annotations

import pytest
import torch

from models.backbones.conv4 import Backbone
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError
from pyro_metabayes.pretraining import PretrainSettings, extract, pretrained_features

SPECIFICATION = {"_target_": "models.backbones.conv4.Backbone", "num_filters": 8}
CPU = torch.device("cpu")


@pytest.fixture
def bank() -> Bank:
    """Four classes of 32 noisy images, each with a bright quarter of its own."""
    images = 60 * torch.rand(4, 32, 1, 16, 16)
    for number in range(4):
        top, left = 8 * (number // 2), 8 * (number % 2)
        images[number, :, :, top : top + 8, left : left + 8] += 120
    ids = torch.arange(4)
    return Bank(
        inputs=images.flatten(0, 1).to(torch.uint8),
        class_sizes=torch.full((4,), 32),
        splits={"train": ids, "val": ids[:0], "test": ids[:0]},
        class_names=["a", "b", "c", "d"],
    )


def nearest_mean_accuracy(features: torch.Tensor) -> float:
    means = features.unflatten(0, (4, 32)).mean(1)
    return (features @ means.T).argmax(1).eq(torch.arange(4).repeat_interleave(32)).float().mean().item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_features_of_a_pretrained_backbone_tell_the_classes_apart(bank: Bank, precision: str) -> None:
    settings = PretrainSettings(epochs=8, batch_size=16, learning_rate=0.05, shift=0, precision=precision)
    features = pretrained_features(Backbone((1, 16, 16), 8), SPECIFICATION, bank, settings, CPU).inputs
    assert features.dtype == torch.float32
    assert nearest_mean_accuracy(features) > 0.95


def test_the_cache_gives_the_same_backbone_and_features(bank: Bank) -> None:
    settings = PretrainSettings(epochs=1, batch_size=16, flip=True)
    first, second = Backbone((1, 16, 16), 8), Backbone((1, 16, 16), 8)
    made = pretrained_features(first, SPECIFICATION, bank, settings, CPU).inputs
    torch.rand(5)  # other noise before must not matter
    found = pretrained_features(second, SPECIFICATION, bank, settings, CPU).inputs
    assert torch.equal(made, found)
    assert torch.equal(extract(second, bank, CPU), made)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^expected pretrain\.precision to be one of 32-true, bf16-mixed, got 'half'$"
    ):
        PretrainSettings(precision="half")
