"""CIFAR-100, 100 classes of 600 images, under the class splits of the few-shot literature.

The images are read from METABAYES_DATA/cifar100, which has one lossless sheet of images per class. If METABAYES_DATA is
not set, they are read from the archive that torchvision downloads. Both sources give the same data set: classes have
the order of the published lists (splits/), and images of a class are sorted by the SHA-1 sums of their pixels.
"""

from __future__ import annotations

import json
import os
import tarfile
from hashlib import sha1, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.class_lists import class_lists
from pyro_metabayes.data.sources.images import pixels
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.storage.cache import cache_folder, cached_arrays, data_file
from pyro_metabayes.storage.checksums import refuse_other
from pyro_metabayes.storage.downloads import refuse_unless_allowed
from pyro_metabayes.storage.unpickle import flat_array, read_arrays, text_keys
from pyro_metabayes.storage.untrusted import DAMAGED, plain_name, reason_of
from pyro_metabayes.vision import torchvision

SIDE, ROWS, COLUMNS = 32, 24, 25  # a sheet is 24 x 25 tiles of 32 x 32 pixels
META = "cifar100/cifar100_meta.json"
HINT = (
    "put cifar100_meta.json and the lossless sheets cifar100/sheets/SPLIT/CLASS.webp there, or unset METABAYES_DATA "
    "and run python -m experiments.prepare data=cifar_fs"
)


def bank_of(split_name: str) -> Bank:
    """Load CIFAR-100, uint8 images [60000, 3, 32, 32], with a published class split: "cifar_fs" or "fc100"."""
    if os.environ.get("METABAYES_DATA"):
        splits, images_of = _from_sheets(split_name)
    else:
        splits, images_of = class_lists(split_name), _from_torchvision()
    names = [name for split in SPLITS for name in splits[split]]
    if absent := [name for name in names if name not in images_of]:
        raise UsageError(
            f"expected images of every class of {split_name} in CIFAR-100, got none of '{absent[0]}' ("
            f"{how_many(len(absent), 'class is', 'classes are')} missing); copy or download the data again"
        )
    images = [images_of[name] for name in names]
    labels = np.arange(len(names)).repeat([len(array) for array in images])
    ids = {split: np.array([names.index(name) for name in splits[split]]) for split in SPLITS}
    return Bank.from_arrays(np.concatenate(images), labels, ids, names)


# METABAYES_DATA --------------------------------------------------------------------------------------


def _from_sheets(split_name: str) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Read the classes of each split, and the images [600, 3, 32, 32] of each class, from METABAYES_DATA."""
    path = data_file(META, HINT)
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        folder = {name: split for split in SPLITS for name in meta["cifar_fs"][split]}  # of each sheet
        splits = {split: list(meta[split_name][split]) for split in SPLITS}
        sums = dict(meta.get("sha256_raw", {}))
        sheets = [plain_name(name, path) for split in SPLITS for name in splits[split] if name in folder]
    except DAMAGED as error:
        raise UsageError(
            f"expected the class splits of CIFAR-100 in {path}, got another file ({reason_of(error)}); copy "
            "the file again"
        ) from None
    return splits, {name: _sheet(folder[name], name, sums.get(name)) for name in sheets}


def _sheet(split: str, name: str, checksum: str | None) -> np.ndarray:
    """Read the images [600, 3, 32, 32] of a class; `checksum` is the SHA-256 of the pixels, or None for no check."""
    path = data_file(f"cifar100/sheets/{split}/{name}.webp", HINT)
    try:
        sheet = pixels(path, None).transpose(1, 2, 0)
    except DAMAGED as error:
        raise UsageError(
            f"expected an image of {ROWS} x {COLUMNS} tiles at {path}, got a damaged file ({reason_of(error)}); copy "
            "the file again"
        ) from None
    if sheet.shape != (ROWS * SIDE, COLUMNS * SIDE, 3):
        raise UsageError(
            f"expected {ROWS} x {COLUMNS} tiles of {SIDE} x {SIDE} pixels in {path}, got an image of shape "
            f"{sheet.shape}; copy the file again"
        )
    tiles = sheet.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    if checksum is not None:
        refuse_other(sha256(tiles.tobytes()).hexdigest(), checksum, f"the pixels of {path} ({META})")
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))


# torchvision -----------------------------------------------------------------------------------------


def _from_torchvision() -> dict[str, np.ndarray]:
    """Return the images of each class. The archive is downloaded unless it is already in the cache."""
    arrays = cached_arrays("cifar100", {"order": "sha1"}, lambda: read_archive(_archive_path()))
    return dict(zip(arrays["names"].tolist(), arrays["images"], strict=True))


def _archive_path() -> Path:
    """Download the archive unless it is in the cache, verify its md5 checksum, and return its path in the cache.

    A partial download is never kept.
    """
    vision = torchvision()
    source = vision.datasets.CIFAR100
    path = cache_folder() / source.filename
    if not path.is_file():
        refuse_unless_allowed("CIFAR-100", "data=cifar_fs", f"put {META} below a folder that METABAYES_DATA names")
    if path.is_file() and not vision.datasets.utils.check_integrity(str(path), source.tgz_md5):
        raise UsageError(
            f"expected the md5 checksum {source.tgz_md5} of {path}, got another checksum (a truncated or a different "
            "file); delete the file and run again to download it"
        )
    if not path.is_file():
        try:
            with TemporaryDirectory(dir=path.parent) as folder:
                vision.datasets.utils.download_url(source.url, folder, path.name, source.tgz_md5)
                os.replace(Path(folder) / path.name, path)
        except (OSError, RuntimeError) as error:  # no network, or another file
            raise UsageError(
                f"expected to download CIFAR-100 with the md5 checksum {source.tgz_md5}, got: {error}; try again, put "
                f"{source.url} into {path.parent} yourself, or set METABAYES_DATA to a folder that contains {META}"
            ) from error
    return path


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read images [G, N, 3, 32, 32] and names [G] of G classes with N images each from cifar-100-python.tar.gz."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            parts = {name: _member(archive, name, path) for name in ("train", "test", "meta")}
    except UsageError:
        raise
    except (*DAMAGED, tarfile.TarError) as error:
        reason = reason_of(error)
        raise UsageError(
            f"expected the archive of CIFAR-100 at {path}, got {reason}; download the archive again"
        ) from None
    halves = [text_keys(parts[name], f"{name} of {path}", "data", "fine_labels") for name in ("train", "test")]
    names = text_keys(parts["meta"], f"meta of {path}", "fine_label_names")["fine_label_names"]
    try:
        images = np.concatenate([flat_array(half["data"], str(path)).reshape(-1, 3, SIDE, SIDE) for half in halves])
        labels = np.concatenate([flat_array(half["fine_labels"], str(path)) for half in halves])
        classes = np.stack([in_order(images[labels == label]) for label in range(len(names))])
        return {"images": classes, "names": flat_array(names, str(path)).astype(str)}
    except DAMAGED as error:
        reason = reason_of(error)
        raise UsageError(
            f"expected equally many images per class in {path}, got {reason}; download the archive again"
        ) from None


def _member(archive: tarfile.TarFile, name: str, path: Path) -> Any:
    member = archive.getmember(f"cifar-100-python/{name}")
    file = archive.extractfile(member) if member.isreg() else None  # a link may point outside the archive
    if file is None:
        raise KeyError(f"an archive without the file {name}")
    return read_arrays(file, f"{name} of {path}")


def in_order(images: np.ndarray) -> np.ndarray:
    """Sort N images [N, 3, 32, 32] by the SHA-1 sums of their pixels, which are hashed as [rows, columns, colours]."""
    keys = [sha1(image.tobytes()).digest() for image in images.transpose(0, 2, 3, 1)]
    return images[sorted(range(len(images)), key=keys.__getitem__)]
