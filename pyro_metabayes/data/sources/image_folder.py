"""Reads images of the user in one folder per class (`class_folders.py` describes the layouts)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources.class_folders import ImageFiles
from pyro_metabayes.data.sources.division import Divided, Division
from pyro_metabayes.data.sources.images import MODES, READING, Colour, all_pixels, colour_of
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.validation.duplicates import note_duplicates


def load(
    path: str = "",
    size: int = 84,
    channels: int = 3,
    background: str = "white",
    split: str = "classes",
    train: float = 0.64,
    val: float = 0.16,
    seed: int = 0,
) -> Bank:
    """Return a bank (data set) of M images, uint8 [M, channels, size, size].

    The images are converted once and kept in the cache.

    Args:
        path: the folder. Files without the suffix of an image are ignored, and so are linked folders within a class.
            A printed note counts ignored files and folders.
        size: side, in pixels, of the square to which every image is resized (Lanczos), whatever its shape.
        channels: 3 (colour) or 1 (grey).
        background: colour behind transparent pixels: a name such as black, or #rrggbb.
        split: what is divided among training, validation and test: classes, rows or none (`Division`).
        train: fraction for training; not used if folders or lists of classes name the splits.
        val: fraction for validation; the rest is for test.
        seed: seed of the random assignment to splits.
    """
    if size < 1 or channels not in MODES:
        raise UsageError(
            f"expected data.size >= 1 and data.channels 1 or 3, got data.size={size} and data.channels={channels}"
        )
    colour, division, images = colour_of(background), Division(split, train, val, seed), ImageFiles.of(path)
    divided = division.divide(images.labels, images.names, images.split, path)
    orders = {name: _order(divided, classes) for name, classes in divided.splits.items()}
    parts = {name: _part(images, divided, order, size, channels, colour) for name, order in orders.items()}
    settings = {"size": size, "channels": channels, "background": colour, "reading": READING}
    bank = division.bank(bank_of("image_folder", parts, settings, division.by))
    folder, order = user_path(path), np.concatenate(list(orders.values()))
    names = [str(images.files[row].relative_to(folder)) for row in order.tolist()]
    bank = replace(bank, origin=names.__getitem__)
    note_duplicates(bank, path)
    return bank


def _order(divided: Divided, classes: np.ndarray) -> np.ndarray:
    """Return the indices of the files whose classes are in a split, sorted by class."""
    rows = np.flatnonzero(np.isin(divided.labels, classes))
    return rows[np.argsort(divided.labels[rows], kind="stable")]


def _part(
    images: ImageFiles, divided: Divided, order: np.ndarray, size: int, channels: int, background: Colour
) -> Part:
    files = [images.files[row] for row in order.tolist()]
    labels, sizes = np.unique(divided.labels[order], return_counts=True)
    named = {divided.names[label]: number for label, number in zip(labels.tolist(), sizes.tolist(), strict=True)}
    return Part(files, lambda: Rows(named, all_pixels(files, size, channels, background)))
