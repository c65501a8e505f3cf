"""Reads support and query sets for predictions of a run, from files of arrays or folders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pyro_metabayes.build import target_of
from pyro_metabayes.data.sources import cifar_fs, fc100, features, image_folder, mini_imagenet, tiered_imagenet
from pyro_metabayes.data.sources.class_folders import images_in, note_left_out
from pyro_metabayes.data.sources.feature_arrays import unit_length
from pyro_metabayes.data.sources.images import all_pixels, centre, colour_of
from pyro_metabayes.data.sources.listing import visible
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz, reason_of
from pyro_metabayes.validation.structure import words_of_shape

PHOTOGRAPHS = (image_folder.load, mini_imagenet.load, tiered_imagenet.load, cifar_fs.load, fc100.load)
CROPPED = (mini_imagenet.load, tiered_imagenet.load)  # resized to the published size before the centre is cut out
NAMES = ("features", "images")  # names of the array with the inputs


@dataclass(frozen=True)
class Queries:
    """Query set of one task.

    Args:
        x: inputs [queries, *shape of an input].
        names: file or row of each query [queries].
        column: title of the column of names, `file` or `row`.
    """

    x: np.ndarray
    names: list[str]
    column: str


@dataclass(frozen=True)
class Reader:
    """Reader of new inputs, which are processed like the training data of a run.

    Args:
        data: the name of the data of the run, for messages.
        load: the function that loaded the data of the run.
        shape: the shape of an input; a size that may vary is None.
        background: colour behind transparent pixels.
    """

    data: str
    load: Callable[..., Any]
    shape: tuple[int | None, ...]
    background: str

    @classmethod
    def of(cls, config: Config, shape: tuple[int | None, ...]) -> Self:
        """Create the reader of a run whose learner takes inputs of this shape."""
        background = str(config.data.get("background", "white"))
        return cls(str(config.choices.get("data")), target_of(config.data, "data"), shape, background)

    def support(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read the support set: inputs [support points, *shape of an input] and labels [support points]."""
        if path.is_dir():
            return self._labelled_images(path)
        arrays = _arrays(path, "support")
        if "labels" not in arrays:
            there = ", ".join(sorted(arrays))
            raise UsageError(
                f"expected an array 'labels' beside the inputs in {path}, got {there}; save both in an .npz"
            )
        x, labels = self._inputs(arrays, path), arrays["labels"]
        if labels.shape != (len(x),) or labels.dtype.kind not in "iuU":
            raise UsageError(
                f"expected {len(x)} labels in {path}, integers or strings, one per input, got {labels.dtype} of shape "
                f"{list(labels.shape)}; give every input one label"
            )
        return x, labels

    def query(self, path: Path) -> Queries:
        """Read the query set. Labels in the file are ignored."""
        if path.is_dir():
            files = images_in(path, "the folder of the query set")
            note_left_out(path, [path])
            return Queries(self._pixels(files), [str(file.relative_to(path)) for file in files], "file")
        x = self._inputs(_arrays(path, "query"), path)
        return Queries(x, [str(row) for row in range(len(x))], "row")

    def _labelled_images(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        classes = [inner for inner in visible(folder) if inner.is_dir()]
        if not classes:
            raise UsageError(f"expected one folder of images per class in {folder}, got none; sort the images by class")
        files = {inner.name: images_in(inner) for inner in classes}
        note_left_out(folder, classes)
        x = self._pixels([file for images in files.values() for file in images])
        return x, np.array([name for name, images in files.items() for _ in images])

    def _pixels(self, files: Sequence[Path]) -> np.ndarray:
        """Read images as an array [images, channels, size, size] with values from 0 to 1."""
        if self.load not in PHOTOGRAPHS:
            raise UsageError(
                f"expected arrays {words_of_shape(self.shape)} for a run on data={self.data}, got images, such as "
                f"{files[0]}; pass FILE.npz"
            )
        channels, _, size = self.shape
        assert channels is not None and size is not None  # images have one size
        side = mini_imagenet.SIDE if self.load in CROPPED else size
        images = all_pixels(files, side, channels, colour_of(self.background))
        return np.stack([centre(image, size) for image in images]).astype(np.float32) / 255

    def _inputs(self, arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
        found = [name for name in NAMES if name in arrays]
        if len(found) != 1:
            there = ", ".join(sorted(arrays)) or "none"
            raise UsageError(
                f"expected one array 'features' or 'images' in {path}, got {there}; save the inputs as 'features'"
            )
        x = arrays[found[0]]
        if not x.size:
            raise UsageError(
                f"expected at least one row in {path}, got {found[0]} of shape {list(x.shape)}; add points"
            )
        if self.load is not features.load:
            return x
        if x.ndim != 2 or x.dtype.kind not in "fiu":
            raise UsageError(
                f"expected numbers [rows, features] in {path}, got {x.dtype} of shape {list(x.shape)}; save one row of "
                "numbers per input"
            )
        return unit_length(x, np.arange(len(x)), str(path))  # as for the data of the run


def _arrays(path: Path, name: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, or an .npy file as {"features": array}. Pickled objects are never loaded."""
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy"):
        raise UsageError(f"expected a folder, or a file that ends in .npz or .npy, for {name}={path}; fix the path")
    if not path.is_file():
        raise UsageError(f"expected a file for {name}={path}, found none; fix the path")
    try:
        return read_npz(path) if suffix == ".npz" else {NAMES[0]: np.load(path, mmap_mode="r")}
    except DAMAGED as error:
        raise UsageError(
            f"expected arrays of numbers in {path}, got an unreadable file: {reason_of(error)}; save it again"
        ) from None
