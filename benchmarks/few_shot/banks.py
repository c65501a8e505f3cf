"""The banks of the comparison. TEST is never used for training or tuning; settings are chosen on TUNING.

A bank is built once, by `python -m benchmarks.few_shot.make_banks`, and kept in the cache folder. All features have
unit length.

    cifar100_lite0     CIFAR-FS test classes, EfficientNet-Lite0, 256 dimensions (METABAYES_DATA/cifar100_features)
    cifar100_lite1     all classes of CIFAR-100, 60 images each, EfficientNet-Lite1, 1,280 dimensions
    docstrings_minilm  docstrings of six packages, the module as class, all-MiniLM-L6-v2, 384 dimensions
    usps_pixels        ten digits, 256 pixels
    usps_hog           the same, histograms of oriented gradients
    omniglot_*         the twelve alphabets in the Vinyals test split that have no training character: pixels, random
                       projections of the pixels, histograms of oriented gradients

The tuning banks are training classes of glyphs and of Omniglot, and MNIST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

from benchmarks.few_shot import docstrings, handcrafted, networks
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources import cifar_fs, glyphs, omniglot
from pyro_metabayes.data.sources.class_lists import class_lists
from pyro_metabayes.data.sources.digit_domains import arrays_of
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.sources.glyph_sheet import FACES
from pyro_metabayes.data.stream import Source
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import Arrays, cached_arrays, data_file

HINT = "put it there"
PER_CLASS = 60  # largest number of rows per class that a network embeds
PER_DIGIT = 200
Features = Callable[[np.ndarray], np.ndarray]


@cache
def source_of(name: str) -> Source:
    """Return the source of tasks of a bank. The bank is built if it is not in the cache.

    Raises:
        UsageError: no bank has this name, or data or packages that the bank needs are not found.
    """
    makers = TEST | TUNING | SIMULATED
    if name not in makers:
        raise UsageError(f"expected a bank of {', '.join(makers)}, got '{name}'")
    made = makers[name]()
    return BankSampler(made) if isinstance(made, Bank) else made


def _bank(
    name: str, settings: Mapping[str, object], make: Callable[[], tuple[np.ndarray, np.ndarray]], split: str = "test"
) -> Bank:
    """Return the bank of the features [N, D] and class names [N] that `make` returns. All classes are in one split."""

    def arrays() -> Arrays:
        features, labels = make()
        return {"features": unit_length(features), "labels": labels}

    saved = cached_arrays(f"few_shot_{name}", settings, arrays)
    names, labels = np.unique(saved["labels"], return_inverse=True)
    return Bank.from_arrays(saved["features"], labels, {split: np.arange(len(names))}, [str(each) for each in names])


def unit_length(features: np.ndarray) -> np.ndarray:
    """Scale the rows to unit length, in float32; a row of zeros is unchanged."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)


def _of_split(bank: Bank, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of a split, and the names of their classes."""
    rows = bank.rows(split)
    names = np.array(bank.class_names)[bank.labels[rows].numpy()]
    return bank.in_memory[rows].numpy(), names


def first_rows(labels: np.ndarray, number: int) -> np.ndarray:
    """Return the indices of the first `number` rows of each class, sorted by class."""
    return np.concatenate([np.flatnonzero(labels == label)[:number] for label in np.unique(labels)])


def _cifar100_lite0() -> Bank:
    path = data_file("cifar100_features/cifar100_lite0_pca256_int8.npz", HINT)

    def make() -> tuple[np.ndarray, np.ndarray]:
        arrays, lists = arrays_of(path), class_lists("cifar_fs")
        names = np.array(sorted(name for split in lists.values() for name in split))[arrays["y"]]
        rows = np.isin(names, lists["test"])
        return arrays["q"][rows] * arrays["scale"], names[rows]

    return _bank("cifar100_lite0", {}, make)


def _cifar100_lite1() -> Bank:
    def make() -> tuple[np.ndarray, np.ndarray]:
        bank = cifar_fs.load()
        rows = first_rows(bank.labels.numpy(), PER_CLASS)
        names = np.array(bank.class_names)[bank.labels[rows].numpy()]
        return networks.image_embeddings(bank.in_memory[rows].numpy()), names

    return _bank("cifar100_lite1", {"rows": PER_CLASS, "side": networks.SIDE}, make)


def _docstrings_minilm() -> Bank:
    def make() -> tuple[np.ndarray, np.ndarray]:
        modules = docstrings.texts_of_modules()
        texts = [text for each in modules.values() for text in each]
        names = np.repeat(list(modules), [len(each) for each in modules.values()])
        return networks.sentence_embeddings(texts), names

    return _bank("docstrings_minilm", docstrings.versions(), make)


def _usps(features: Features) -> Bank:
    path = data_file("digits/usps_16.npz", HINT)

    def make() -> tuple[np.ndarray, np.ndarray]:
        arrays = arrays_of(path)
        images, digits = (np.concatenate([arrays[f"{half}_{axis}"] for half in ("train", "test")]) for axis in "xy")
        rows = first_rows(digits, PER_DIGIT)
        return features(images[rows]), digits[rows].astype(str)

    return _bank(f"usps_{features.__name__}", {"rows": PER_DIGIT}, make)


def _omniglot_test(features: Features) -> Bank:
    """Return the bank of the characters of test alphabets without a character in the training split."""

    def make() -> tuple[np.ndarray, np.ndarray]:
        images, names = _of_split(omniglot.load(rotations="none"), "test")
        seen = {alphabet_of(name) for name, split in omniglot.vinyals_split().items() if split == "train"}
        rows = np.array([alphabet_of(name) not in seen for name in names])
        return features(images[rows, 0]), names[rows]

    return _bank(f"omniglot_{features.__name__}", {}, make)


def alphabet_of(character: str) -> str:
    """Return the alphabet of a class name `alphabet/character`."""
    return character.partition("/")[0]


def _glyphs(features: Features) -> Bank:
    def make() -> tuple[np.ndarray, np.ndarray]:
        return features(bank.in_memory[bank.rows("train"), 0].numpy()), names

    bank = glyphs.load(images_per_class=len(FACES))  # one image per font face, so all images differ in their drawing
    names = np.array(bank.class_names)[bank.labels[bank.rows("train")].numpy()]
    return _bank(f"glyphs_{features.__name__}", {"bank": bank.fingerprint()}, make, "train")


def _omniglot_train(features: Features) -> Bank:
    def make() -> tuple[np.ndarray, np.ndarray]:
        images, names = _of_split(omniglot.load(rotations="none"), "train")
        return features(images[:, 0]), names

    return _bank(f"tuning_omniglot_{features.__name__}", {}, make, "train")


def _mnist(features: Features) -> Bank:
    path = data_file("digits/mnist_28.npz", HINT)

    def make() -> tuple[np.ndarray, np.ndarray]:
        arrays = arrays_of(path)
        rows = first_rows(arrays["train_y"], PER_DIGIT)
        return features(arrays["train_x"][rows]), arrays["train_y"][rows].astype(str)

    return _bank(f"mnist_{features.__name__}", {"rows": PER_DIGIT}, make, "train")


Maker = Callable[[], Bank | Source]
PIXELS, PROJECTED, HOG = handcrafted.pixels, handcrafted.projected, handcrafted.gradient_histograms
TEST: dict[str, Maker] = {
    "cifar100_lite0": _cifar100_lite0,
    "cifar100_lite1": _cifar100_lite1,
    "docstrings_minilm": _docstrings_minilm,
    "usps_pixels": partial(_usps, PIXELS),
    "usps_hog": partial(_usps, HOG),
    "omniglot_pixels": partial(_omniglot_test, PIXELS),
    "omniglot_projected": partial(_omniglot_test, PROJECTED),
    "omniglot_hog": partial(_omniglot_test, HOG),
}
TUNING: dict[str, Maker] = {
    "glyphs_pixels": partial(_glyphs, PIXELS),
    "glyphs_hog": partial(_glyphs, HOG),
    "tuning_omniglot_hog": partial(_omniglot_train, HOG),
    "mnist_pixels": partial(_mnist, PIXELS),
    "mnist_hog": partial(_mnist, HOG),
}
SIMULATED: dict[str, Maker] = {"simulated": partial(GaussianFeatures, num_features=32, separation=0.9)}  # for --toy
