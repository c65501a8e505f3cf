"""mini-ImageNet: 100 classes of 600 images, 64 / 16 / 20 classes for train, val and test (Ravi and Larochelle 2017).

There is no official download. Three forms are read from METABAYES_DATA/mini_imagenet, the first that exists:

    train.csv, val.csv, test.csv, with a line filename,label for each image, and the files in images/
    mini-imagenet-cache-{train,val,test}.pkl: image_data [N, 84, 84, 3] and class_dict, class -> rows
    miniImageNet_category_split_{train_phase_train,val,test}.pickle: data [N, 84, 84, 3] and labels [N]
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.images import READING, all_pixels, centre
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_folder
from pyro_metabayes.storage.unpickle import flat_array, load_arrays, text_keys
from pyro_metabayes.storage.untrusted import plain_name

SIDE = 84  # side of the published images in pixels
CACHE = "mini-imagenet-cache-{}.pkl"
CATEGORY = "miniImageNet_category_split_{}.pickle"
HINT = (
    "put train.csv, val.csv, test.csv and the folder images/ there, or mini-imagenet-cache-{train,val,test}.pkl, "
    "or miniImageNet_category_split_{train_phase_train,val,test}.pickle"
)


def load(size: int = SIDE) -> Bank:
    """Load mini-ImageNet: uint8 images [60000, 3, size, size], converted once and kept in the cache.

    Image files of other sizes are first resized to 84 x 84 (Lanczos).

    Args:
        size: 84, or the side of a centre crop in pixels (80 in the evaluation of SIB, Hu et al. 2020).
    """
    refuse_size(size)
    folder = data_folder("mini_imagenet", HINT)
    parts = {split: _part(folder, split, size) for split in SPLITS}
    return bank_of("mini_imagenet", parts, {"size": size, "reading": READING})


def refuse_size(size: int) -> None:
    if not 1 <= size <= SIDE:
        raise UsageError(f"expected data.size from 1 to {SIDE}, the side of the published images, got {size}")


def _part(folder: Path, split: str, size: int) -> Part:
    phase = "train_phase_train" if split == "train" else split
    table, cache, category = folder / f"{split}.csv", folder / CACHE.format(split), folder / CATEGORY.format(phase)
    if table.is_file():
        return _of_table(table, size)
    if cache.is_file():
        return Part([cache], lambda: _of_cache(cache, size))
    if category.is_file():
        return Part([category], lambda: _of_category(category, split, size))
    raise UsageError(f"expected {table.name}, {cache.name} or {category.name} in {folder}, got none; {HINT}")


def _of_table(table: Path, size: int) -> Part:
    """Read a split from a .csv file of Ravi and Larochelle, and from the image files that it lists."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            lines = list(csv.reader(file))
        except csv.Error as error:
            raise UsageError(
                f"expected lines of filename,label in {table}, got another format ({error}); copy the file again"
            ) from None
    if not lines or lines[0] != ["filename", "label"] or any(len(line) != 2 for line in lines):
        raise UsageError(
            f"expected the header filename,label and lines of two cells in {table}, got others; copy the file again"
        )
    label_of = {table.parent / "images" / plain_name(name, table): label for name, label in lines[1:]}
    if missing := [path for path in label_of if not path.is_file()]:
        raise UsageError(
            f"expected all images of the list {table.name}, found no {missing[0]} ({len(missing)} of {len(label_of)} "
            "are missing); add these images, or use the list that belongs to your images"
        )
    files = sorted(label_of, key=label_of.__getitem__)
    sizes = dict(sorted(Counter(label_of.values()).items()))
    return Part([table, *files], lambda: Rows(sizes, (centre(image, size) for image in all_pixels(files, SIDE))))


def _of_cache(path: Path, size: int) -> Rows:
    content = text_keys(load_arrays(path), str(path), "image_data", "class_dict")
    images = validate_images(content["image_data"], str(path))
    rows_of = {
        name: flat_array(rows, f"class_dict of {path}")
        for name, rows in text_keys(content["class_dict"], f"class_dict of {path}").items()
    }
    for name, rows in rows_of.items():
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or not len(rows)
            or rows.min() < 0
            or rows.max() >= len(images)
        ):
            raise UsageError(
                f"expected row numbers of image_data, 0 to {len(images) - 1}, for each class of class_dict in {path}, "
                f"got other values for class '{name}'; copy the file again"
            )
    names = [name for name, rows in rows_of.items() for _ in rows]
    order = [row for rows in rows_of.values() for row in rows.tolist()]
    return Rows.of_labels(names, lambda index: as_input(images[order[index]], size))


def _of_category(path: Path, split: str, size: int) -> Rows:
    content = text_keys(load_arrays(path), str(path), "data", "labels")
    images = validate_images(content["data"], str(path))
    labels = validate_labels(content["labels"], len(images), str(path))
    name_of = {int(label): name for name, label in text_keys(content.get("catname2label", {}), str(path)).items()}
    names = [name_of.get(label, f"{split} {label:03d}") for label in labels]
    return Rows.of_labels(names, lambda index: as_input(images[index], size))


def validate_images(value: Any, name: str) -> np.ndarray:
    """Check N images, in an array, a list or an array of objects, and return them as uint8 [N, 84, 84, 3].

    Raises:
        UsageError: the value has another type, or the images have another shape or type.
    """
    if not isinstance(value, list | np.ndarray):
        raise UsageError(f"expected images in {name}, got a {type(value).__name__}; download the file again")
    mixed = isinstance(value, list) or value.dtype == object
    if mixed and (strange := [image for image in value if not isinstance(image, np.ndarray)]):
        raise UsageError(f"expected images in {name}, got a {type(strange[0]).__name__}; download the file again")
    shapes = {np.shape(image) for image in value} if mixed else {np.shape(value)[1:]}
    if shapes != {(SIDE, SIDE, 3)}:
        got = ", ".join(sorted(str(list(shape)) for shape in shapes)[:3]) or "none"
        raise UsageError(f"expected only images of {SIDE} x {SIDE} x 3 in {name}, got {got}; download the file again")
    images = np.stack(list(value)) if mixed else np.asarray(value)
    if images.dtype != np.uint8:
        raise UsageError(f"expected images of type uint8 in {name}, got {images.dtype}; download the file again")
    return images


def validate_labels(value: Any, rows: int, name: str) -> list[int]:
    """Return labels as a list with one integer for each of `rows` images; other values raise a UsageError."""
    labels = flat_array(value, name)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise UsageError(
            f"expected one integer label for each of the {rows} images in {name}, got {labels.dtype} of shape "
            f"{list(labels.shape)}; download the file again"
        )
    return labels.tolist()


def as_input(image: np.ndarray, size: int) -> np.ndarray:
    """Return the centre crop [3, size, size] of an image [84, 84, 3]."""
    return centre(image.transpose(2, 0, 1), size)
