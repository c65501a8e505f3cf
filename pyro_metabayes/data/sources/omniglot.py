"""Omniglot (Lake et al. 2015): 1,623 handwritten characters of 50 alphabets, 20 drawings of each.

Images are grey, 28 x 28, ink 255 on background 0. The split is that of Vinyals et al. 2016, listed in splits/ as
`alphabet/character`: 1,028 / 172 / 423 characters for train, val and test. The rotations of a character by 90, 180 and
270 degrees are further classes, as customary.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.class_lists import class_lists
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.storage.cache import cache_folder, cached_arrays, data_file
from pyro_metabayes.storage.downloads import refuse_unless_allowed
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz, reason_of
from pyro_metabayes.vision import torchvision

SIZE = 28
FILE = "omniglot/omniglot_28.npz"
ROTATED_SPLITS = {"all": SPLITS, "train": ("train",), "none": ()}


def load(rotations: str = "all") -> Bank:
    """Load Omniglot from METABAYES_DATA/omniglot/omniglot_28.npz. Without METABAYES_DATA, torchvision downloads it.

    Args:
        rotations: the splits in which rotated characters are further classes: "all" (4,112 / 688 / 1,692 classes, as
            in Snell et al. 2017 and VERSA), "train" or "none".
    """
    check_choice("data.rotations", rotations, tuple(ROTATED_SPLITS))
    images, names = _from_file() if os.environ.get("METABAYES_DATA") else _from_torchvision()
    split_of = vinyals_split()
    images = _in_order(images, names, list(split_of))
    return _bank(images, list(split_of), np.array(list(split_of.values())), ROTATED_SPLITS[rotations])


def vinyals_split() -> dict[str, str]:
    """Return the split of each character of Omniglot (Vinyals et al. 2016), as {`alphabet/character`: split}."""
    return {name: split for split, names in class_lists("omniglot").items() for name in names}


def to_28(drawings: np.ndarray) -> np.ndarray:
    """Resize N drawings [N, height, width], ink 255 on background 0, to 28 x 28 (Lanczos)."""
    small = [Image.fromarray(drawing).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for drawing in drawings]
    return np.stack([np.asarray(image) for image in small])


def _from_file() -> tuple[np.ndarray, np.ndarray]:
    """Read the images [1623, 20, 28, 28] of all characters, and their names, from METABAYES_DATA."""
    path = data_file(FILE, "put it there, or unset METABAYES_DATA and run python -m experiments.prepare data=omniglot")
    try:
        archive = read_npz(path)
        names = np.char.add(np.char.add(archive["alphabet"], "/"), archive["character"])
        return archive["images"], names
    except DAMAGED as error:
        raise UsageError(
            f"expected the arrays 'images', 'alphabet' and 'character' in {path}, got {type(error).__name__} "
            f"({reason_of(error)}); copy the file again"
        ) from error


def _from_torchvision() -> tuple[np.ndarray, np.ndarray]:
    arrays = cached_arrays("omniglot", {"size": SIZE}, _download)
    return arrays["images"], arrays["names"]


def _download() -> dict[str, np.ndarray]:
    """Download both halves of Omniglot with torchvision, and invert them (torchvision has ink 0 on background 255)."""
    refuse_unless_allowed("Omniglot", "data=omniglot", f"put {FILE} below a folder that METABAYES_DATA names")
    datasets = torchvision().datasets
    images, names = [], []
    for background in (True, False):
        try:
            part = datasets.Omniglot(str(cache_folder()), background=background, download=True)
        except (OSError, RuntimeError) as error:  # no network, or a damaged file
            raise UsageError(
                f"expected to download Omniglot, got: {error}; try again, or set METABAYES_DATA to a "
                f"folder that contains {FILE}"
            ) from error
        drawings = np.stack([255 - np.asarray(part[index][0].convert("L")) for index in range(len(part))])
        labels = np.array([part[index][1] for index in range(len(part))])
        order = np.argsort(labels, kind="stable")
        images.append(to_28(drawings[order]).reshape(-1, 20, SIZE, SIZE))
        names += [name.strip("/") for name in part._characters]
    return {"images": np.concatenate(images), "names": np.array(names)}


def _in_order(images: np.ndarray, names: np.ndarray, order: list[str]) -> np.ndarray:
    """Return the images of the characters `names`, sorted so that the names have the order `order`."""
    place = {str(name): index for index, name in enumerate(names)}
    missing = [name for name in order if name not in place]
    if missing:
        raise UsageError(
            f"expected all {len(order)} characters of Omniglot, got {len(place)}, without {missing[0]}; copy or "
            "download the data again"
        )
    return images[[place[name] for name in order]]


def _bank(images: np.ndarray, names: list[str], splits: np.ndarray, rotated_splits: tuple[str, ...]) -> Bank:
    """Return the data set of all characters, followed by the rotated characters as further classes."""
    parts, class_names, class_splits = [images], list(names), [splits]
    rows = np.flatnonzero(np.isin(splits, rotated_splits))
    for quarter in (1, 2, 3) if len(rows) else ():
        parts.append(np.rot90(images[rows], quarter, axes=(2, 3)))
        class_names += [f"{names[row]}/rot{90 * quarter:03d}" for row in rows]
        class_splits.append(splits[rows])
    inputs, split = np.concatenate(parts), np.concatenate(class_splits)
    return Bank.from_arrays(
        inputs.reshape(-1, 1, SIZE, SIZE),
        np.repeat(np.arange(len(inputs)), inputs.shape[1]),
        {name: np.flatnonzero(split == name) for name in SPLITS},
        class_names,
    )
