"""tiered-ImageNet (Ren et al. 2018): 779,165 images of 608 classes, 351 / 97 / 160 for train, val and test.

The classes of different splits belong to different categories.

The following files are read from METABAYES_DATA/tiered_imagenet for each split:

    {split}_images_png.pkl: a list of PNG files
    {split}_images.npz, if there is no .pkl: images [N, 84, 84, 3], channels in the order blue, green, red
    {split}_labels.pkl: label_specific (or labels) [N], and label_specific_str, the names of the classes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.images import centre, pixels
from pyro_metabayes.data.sources.mini_imagenet import SIDE, as_input, refuse_size, validate_images, validate_labels
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_folder
from pyro_metabayes.storage.unpickle import flat_array, load_arrays, text_keys
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz, reason_of

HINT = (
    "put {train,val,test}_images_png.pkl (or _images.npz) and {train,val,test}_labels.pkl there; for images in folders "
    "use data=image_folder"
)


def load(size: int = SIDE) -> Bank:
    """Load tiered-ImageNet: uint8 images [779165, 3, size, size], converted once and kept in the cache.

    Cache and memory each need 16.5 GB.

    Args:
        size: 84, or the side of a centre crop in pixels (80 in the evaluation of SIB, Hu et al. 2020).
    """
    refuse_size(size)
    folder = data_folder("tiered_imagenet", HINT)
    return bank_of("tiered_imagenet", {split: _part(folder, split, size) for split in SPLITS}, {"size": size})


def _part(folder: Path, split: str, size: int) -> Part:
    labels = folder / f"{split}_labels.pkl"
    png_files, array_file = folder / f"{split}_images_png.pkl", folder / f"{split}_images.npz"
    images = png_files if png_files.is_file() else array_file
    for path in (images, labels):
        if not path.is_file():
            raise UsageError(f"expected a file at {path}, got none; {HINT}")
    read = _rows_of_files if images == png_files else _rows_of_array
    return Part([images, labels], lambda: read(images, labels, split, size))


def _rows_of_files(images: Path, labels: Path, split: str, size: int) -> Rows:
    files = load_arrays(images)
    if not isinstance(files, list | np.ndarray):
        raise UsageError(
            f"expected a list of PNG files in {images}, got {type(files).__name__}; download the file again"
        )
    return Rows.of_labels(_names(labels, len(files), split), lambda row: centre(_decode(files[row], row, images), size))


def _decode(file: Any, row: int, source: Path) -> np.ndarray:
    """Decode the pixels of a PNG file that was pickled as an array of bytes or as a string."""
    try:
        if not isinstance(file, str | bytes | np.ndarray):
            raise TypeError(f"an object of type {type(file).__name__}, not bytes")
        image = pixels(file.encode("latin1") if isinstance(file, str) else bytes(file), None)
    except DAMAGED as error:
        raise UsageError(
            f"expected PNG files in {source}, got another object as item {row} ({reason_of(error)}); copy the "
            "file again"
        ) from None
    if image.shape != (3, SIDE, SIDE):
        raise UsageError(
            f"expected only images of {SIDE} x {SIDE} pixels in {source}, got {image.shape[2]} x "
            f"{image.shape[1]} pixels in item {row}; download the file again"
        )
    return image


def _rows_of_array(images: Path, labels: Path, split: str, size: int) -> Rows:
    try:
        arrays = read_npz(images)
    except DAMAGED as error:
        raise UsageError(f"expected an .npz file, got {images}: {reason_of(error)}; download it again") from None
    if "images" not in arrays:
        raise UsageError(f"expected an array 'images' in {images}, got {sorted(arrays)}; download the file again")
    content = arrays["images"][..., ::-1]
    array = validate_images(content, str(images))
    return Rows.of_labels(_names(labels, len(array), split), lambda row: as_input(array[row], size))


def _names(path: Path, rows: int, split: str) -> list[str]:
    """Return the class name of each image: split, number and word. Different classes may have the same word."""
    content = text_keys(load_arrays(path), str(path))
    key = "label_specific" if "label_specific" in content else "labels"
    labels = validate_labels(text_keys(content, str(path), key)[key], rows, str(path))
    names = content.get("label_specific_str")
    if names is None:
        return [f"{split} {label:03d}" for label in labels]
    names = flat_array(names, str(path)).ravel().tolist()
    if absent := [label for label in labels if not 0 <= label < len(names)]:
        raise UsageError(
            f"expected a name in label_specific_str for every class in {path}, got {len(names)} names and class number "
            f"{absent[0]}; download the file again"
        )
    words = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    return [f"{split} {label:03d} {words[label]}" for label in labels]
