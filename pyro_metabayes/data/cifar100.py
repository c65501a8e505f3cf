"""CIFAR-100, 100 classes of 600 images, under the class splits of the few-shot literature."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image, UnidentifiedImageError

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.cache import data_file
from pyro_metabayes.errors import UsageError

SIDE, ROWS, COLUMNS = 32, 24, 25  # a sheet is 24 x 25 tiles of 32 x 32 pixels
HINT = "put cifar100_meta.json and the lossless sheets cifar100/sheets/SPLIT/CLASS.webp there"


def bank_of(split_name: str) -> Bank:
    """uint8 images [60000, 3, 32, 32] in the classes of a split ("cifar_fs", "fc100"), from METABAYES_DATA."""
    meta = json.loads(data_file("cifar100/cifar100_meta.json", HINT).read_text())
    folder = {name: split for split in SPLITS for name in meta["cifar_fs"][split]}  # where the sheets lie
    names = [name for split in SPLITS for name in meta[split_name][split]]
    images = np.concatenate([_sheet(folder[name], name) for name in names])
    labels = np.arange(len(names)).repeat(ROWS * COLUMNS)
    ids = {split: np.array([names.index(name) for name in meta[split_name][split]]) for split in SPLITS}
    return Bank.from_arrays(images, labels, ids, names)


def _sheet(split: str, name: str) -> np.ndarray:
    """The 600 images of a class [600, 3, 32, 32]."""
    path = data_file(f"cifar100/sheets/{split}/{name}.webp", HINT)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(
            f"expected an image of {ROWS} x {COLUMNS} tiles at {path}, got a damaged file: {error}"
        ) from None
    if pixels.shape != (ROWS * SIDE, COLUMNS * SIDE, 3):
        raise UsageError(f"expected {ROWS} x {COLUMNS} tiles of {SIDE} x {SIDE} pixels in {path}, got {pixels.shape}")
    tiles = pixels.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(ROWS * COLUMNS, 3, SIDE, SIDE)
