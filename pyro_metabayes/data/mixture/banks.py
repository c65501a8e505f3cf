"""Feature data sets that train the pretrained learners of this package.

The features are outputs of several networks for images of characters and digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pyro_metabayes.build import build
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.pretraining import PretrainSettings, extract, pretrain
from pyro_metabayes.seeding import drawing, noise_of
from pyro_metabayes.storage.cache import data_file
from pyro_metabayes.storage.untrusted import read_npz

NETWORK = {"_target_": "models.backbones.conv4.Backbone"}
HARD_GLYPHS: dict[str, Any] = {"noise": 0.45, "rotation": 35.0, "erase": 3.0, "scale": 0.3}
EPOCHS = {"glyphs": (2, 6), "hard_glyphs": (6,), "omniglot": (2, 5)}
HINT = "put the file there; docs/any-embeddings.md lists what the training of shipped learners reads"
MNIST_IMAGES = 6000
DEPTHS = (2, 3, 4)  # the outputs of these blocks of a network, counted from 1, are feature data sets
MOST_FEATURES = 600  # larger outputs are projected to this number of features


@dataclass(frozen=True)
class FeatureRows:
    """Feature data set: M feature vectors x [M, D], sorted by class, and the number of rows of each class [G]."""

    name: str
    x: Tensor
    class_sizes: Tensor


def training_banks(device: torch.device | str = "cpu") -> list[FeatureRows]:
    """Return the feature data sets of data=mixture.

    The images come from
        glyphs: the training split (Latin, signs, arrows),
        Omniglot: the 30 background alphabets,
        MNIST: 6,000 training images,
        UCI digits: all images.
    Networks are trained on one half of the character classes, and the data sets hold the other half. The test split of
    the glyphs, the 20 evaluation alphabets of Omniglot, USPS and CIFAR-100 are not used and can serve as tests.

    Args:
        device: device on which the networks are trained. Trained networks are cached.

    Raises:
        UsageError: the folder METABAYES_DATA lacks Omniglot or the digits.
    """
    return list(_all(torch.device(device)))


def _all(device: torch.device) -> Iterator[FeatureRows]:
    from pyro_metabayes.data.sources import glyphs  # imports matplotlib: not for --help

    images = {"glyphs": glyphs.load(), "hard_glyphs": glyphs.load(**HARD_GLYPHS), "omniglot": _omniglot()}
    network = None
    for name, bank in images.items():
        halved = _halved(bank)
        yield from _untrained(name, halved, device)
        for epochs in EPOCHS[name]:
            network = _trained(halved, epochs, device)
            yield from _of_network(f"{name}_{epochs}_epochs", network, halved, device)
    assert network is not None
    for name, bank in _digits().items():
        yield _pixels(name, bank)
        if bank.input_shape == halved.input_shape:
            yield from _of_network(f"{name}_omniglot", network, bank, device)


def _halved(bank: Bank) -> Bank:
    """Return the data set of the training classes only. Every second of these classes moves to the split `test`."""
    classes = bank.splits["train"].contiguous()
    return replace(
        bank, splits={"train": classes[::2].clone(), "val": classes[:0], "test": classes[1::2].clone()}, pairs=None
    )


def _untrained(name: str, bank: Bank, device: torch.device) -> Iterator[FeatureRows]:
    yield _pixels(name, bank)
    with noise_of(len(name)), drawing():
        network: nn.Module = build(NETWORK, "backbone", input_shape=bank.input_shape)
    yield from _of_network(f"{name}_random", network.to(device), bank, device)


def _trained(bank: Bank, epochs: int, device: torch.device) -> nn.Module:
    network: nn.Module = build(NETWORK, "backbone", input_shape=bank.input_shape)
    pretrain(network, NETWORK, bank, PretrainSettings(epochs=epochs), device)
    return network


def _pixels(name: str, bank: Bank) -> FeatureRows:
    rows, sizes = _of_test(bank)
    pixels = bank.in_memory[rows].float() / 255
    pixels = avg_pool2d(pixels, 2) if pixels.shape[-1] > 16 else pixels
    return FeatureRows(f"{name}_pixels", pixels.flatten(1), sizes)


def _of_network(name: str, network: nn.Module, bank: Bank, device: torch.device) -> Iterator[FeatureRows]:
    """Yield the outputs of the last blocks of a network as features. Large outputs are projected at random."""
    rows, sizes = _of_test(bank)
    blocks: Any = network.blocks
    for depth in DEPTHS:
        part = nn.Sequential(*blocks[:depth], nn.Flatten())
        x = extract(part, bank.in_memory[rows], device)
        if x.shape[1] > MOST_FEATURES:
            matrix = torch.randn(x.shape[1], MOST_FEATURES, generator=torch.Generator().manual_seed(depth))
            x = x @ matrix / MOST_FEATURES**0.5
        yield FeatureRows(f"{name}_block{depth}", x, sizes)


def _of_test(bank: Bank) -> tuple[Tensor, Tensor]:
    return bank.rows("test"), bank.class_sizes[bank.splits["test"]]


def _omniglot() -> Bank:
    archive = read_npz(data_file("omniglot/omniglot_28.npz", HINT))
    images = archive["images"][archive["part"] == "background"]
    labels = np.repeat(np.arange(len(images)), images.shape[1])
    return Bank.from_arrays(images.reshape(-1, 1, *images.shape[2:]), labels, {"train": np.arange(len(images))})


def _digits() -> dict[str, Bank]:
    mnist = read_npz(data_file("digits/mnist_28.npz", HINT))
    uci = read_npz(data_file("digits/sklearn_digits_8.npz", HINT))
    sixteenths = (uci["x"].astype(np.float32) * (255 / 16)).astype(np.uint8)
    arrays = {
        "mnist": (mnist["train_x"][:MNIST_IMAGES], mnist["train_y"][:MNIST_IMAGES]),
        "uci_digits": (sixteenths, uci["y"]),
    }
    return {
        name: Bank.from_arrays(images[:, None], labels.astype(np.int64), {"test": np.arange(10)})
        for name, (images, labels) in arrays.items()
    }
