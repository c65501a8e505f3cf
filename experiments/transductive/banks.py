"""The banks of experiments.transductive, i.e. data sets of features, each in one file that data=features reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_metabayes.build import build
from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.class_lists import class_lists
from pyro_metabayes.data.sources.digit_domains import arrays_of
from pyro_metabayes.device import device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.pretraining import pretrain
from pyro_metabayes.storage.cache import Arrays, data_file
from pyro_metabayes.storage.checkpoint import write_atomically

CIFAR100_FEATURES = "cifar100_features/cifar100_lite0_pca256_int8.npz"  # below METABAYES_DATA


def write_bank(path: Path, settings: str) -> None:
    """Write a data set of features to an .npz file. An existing file is kept.

    The arrays are features, labels, split and, if inputs come in pairs, partner (the row of the other input).

    Args:
        path: the file.
        settings: the inputs from which the features are computed, in one of three forms.
            Settings of `experiments.pretrain`: the images of `data=`, with the network that these settings pretrain.
            `cifar100_features`: the features in METABAYES_DATA/cifar100_features, with the splits of CIFAR-FS.
            `simulated`: small Gaussian classes, for tests.
    """
    if path.exists():
        return
    sources = {"cifar100_features": _of_cifar100, "simulated": _simulated}
    arrays = sources[settings]() if settings in sources else _of_images(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: _save(file, arrays))


def _save(path: Path, arrays: Arrays) -> None:
    values: dict[str, Any] = dict(arrays)
    with path.open("wb") as file:  # savez would add .npz to the name
        np.savez(file, **values)


def _of_images(settings: str) -> Arrays:
    config = config_of(settings.split())
    bank = build(config.source(), "data")
    if not isinstance(bank, Bank):
        raise UsageError(f"expected settings of a data set of images, got '{settings}'; use settings like data=glyphs")
    torch.set_num_threads(config.threads)
    specification = config.specification()["backbone"]
    backbone = build(specification, "backbone", input_shape=bank.input_shape)
    features = pretrain(backbone, specification, bank, config.pretrain, device_of(config.device)).bank.in_memory
    split = np.empty(len(bank.class_sizes), dtype=np.int64)
    for number, name in enumerate(SPLITS):
        split[bank.splits[name].numpy()] = number
    labels = bank.labels.numpy()
    partner = {} if bank.pairs is None else {"partner": bank.pairs.partner.numpy()}
    return {"features": features.numpy(), "labels": labels, "split": split[labels], **partner}


def _of_cifar100() -> Arrays:
    arrays = arrays_of(data_file(CIFAR100_FEATURES, "put it there"))
    split_of = {name: split for split, names in class_lists("cifar_fs").items() for name in names}
    names = np.array(sorted(split_of))
    splits = np.array([split_of[name] for name in names])
    features = (arrays["q"] * arrays["scale"]).astype(np.float32)
    return {"features": features, "labels": names[arrays["y"]], "split": splits[arrays["y"]]}


def _simulated(classes: int = 36, rows: int = 30, dimension: int = 16) -> Arrays:
    numbers = np.random.default_rng(0)
    centres = numbers.normal(size=(classes, 1, dimension))
    features = (centres + numbers.normal(size=(classes, rows, dimension))).reshape(-1, dimension)
    labels = np.repeat(np.arange(classes), rows)
    return {"features": features.astype(np.float32), "labels": labels, "split": labels % 3}
