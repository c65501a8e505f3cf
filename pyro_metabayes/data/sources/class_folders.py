"""Lists images in one folder per class, and the split of each class if the folder gives splits.

There are three layouts:
1. FOLDER/train, FOLDER/val and FOLDER/test contain the folders of the classes of each split.
2. FOLDER contains the folders of all classes. The files train.txt, val.txt and test.txt list class names, one per line.
3. FOLDER contains the folders of all classes, without splits.

Hidden files and folders are ignored, and so are those that operating systems create (listing.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pyro_metabayes.data.bank import SPLITS
from pyro_metabayes.data.sources.listing import is_hidden, lines_of, linked_folders, visible, visible_files
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import plain_name

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MOST_SUFFIXES = 3  # largest number of suffixes of ignored files that the note lists
LAYOUT = "train/, val/ and test/, each with one folder per class, or one folder per class (and a train.txt, ...)"

Folders = Mapping[str, Mapping[str, Path]]  # folder of each class of each split; the split "" if nothing says which


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder with their classes, sorted by split, class and name.

    Args:
        files: paths of the M files.
        labels: [M], class of each file, 0 to G - 1.
        names: [G], sorted names of the classes.
        split: [M], split of each file, 0 to 2 for train, val and test; None: the folder does not give splits.
    """

    files: Sequence[Path]
    labels: np.ndarray
    names: Sequence[str]
    split: np.ndarray | None

    @classmethod
    def of(cls, path: str) -> Self:
        """Find the images in a folder; a printed note counts the files that are left out.

        Raises:
            UsageError: the folder does not exist, or its layout is not supported.
        """
        folder = user_path(path)
        if not path or not folder.is_dir():
            raise UsageError(f"expected a folder of images, got '{path}'; set data.path to a folder with {LAYOUT}")
        classes = classes_of(folder)
        listed = [
            (place, name, file)
            for place, split in enumerate(classes)
            for name in sorted(classes[split])
            for file in images_in(classes[split][name])
        ]
        note_left_out(folder, [inner for folders in classes.values() for inner in folders.values()])
        names = sorted({name for _, name, _ in listed})
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            files=[file for _, _, file in listed],
            labels=np.array([numbers[name] for _, name, _ in listed], np.int64),
            names=names,
            split=None if "" in classes else np.array([place for place, _, _ in listed], np.int64),
        )


def classes_of(folder: Path) -> Folders:
    """Return the folders of the classes of each split. Without splits, the only key is ""."""
    if any((folder / f"{split}.txt").is_file() for split in SPLITS):
        return _classes_of_lists(folder)
    inner = {path.name: path for path in visible(folder) if path.is_dir()}
    return {"": inner} if inner and inner.keys().isdisjoint(SPLITS) else _classes_of_folders(folder)


def note_left_out(folder: Path, classes: Sequence[Path]) -> None:
    """Print how many files and linked folders within the folders of the classes are ignored."""
    others = [file for inner in classes for file in visible_files(inner) if not _is_image(file)]
    linked = sum(len(linked_folders(inner)) for inner in classes)
    suffixes = ", ".join(sorted({file.suffix.lower() or "no suffix" for file in others})[:MOST_SUFFIXES])
    counts = [f"{how_many(len(others), 'file')} without the suffix of an image ({suffixes})"] if others else []
    counts += [f"{how_many(linked, 'linked folder')} within classes"] if linked else []
    if counts:
        print(f"note: left out of {folder}: {' and '.join(counts)}", file=sys.stderr)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _classes_of_folders(folder: Path) -> Folders:
    """Find the folder of each class in the layout FOLDER/SPLIT/CLASS."""
    if missing := [split for split in SPLITS if not (folder / split).is_dir()]:
        if len(missing) == len(SPLITS):
            found = "only files; sort the images" if visible(folder) else "an empty folder; add images"
            raise UsageError(f"expected folders of classes in {folder}, got {found} into {LAYOUT}")
        raise UsageError(f"expected a folder {folder / missing[0]}, got none; {folder} must contain {LAYOUT}")
    return {split: {inner.name: inner for inner in visible(folder / split) if inner.is_dir()} for split in SPLITS}


def _classes_of_lists(folder: Path) -> Folders:
    """Find the folder of each class in the layout FOLDER/CLASS. FOLDER/SPLIT.txt lists the classes of a split."""
    classes = {}
    for split in SPLITS:
        file = folder / f"{split}.txt"
        if not file.is_file():
            raise UsageError(f"expected the names of the {split} classes in {file}, got no such file; create it")
        names = [plain_name(name, file) for name in lines_of(file)]
        if hidden := [name for name in names if is_hidden(name)]:
            raise UsageError(
                f"expected names of classes in {file}, got '{hidden[0]}' (hidden, or created by an operating system); "
                "remove it from the list"
            )
        if absent := [name for name in names if not (folder / name).is_dir()]:
            raise UsageError(
                f"expected a folder for every class that {file} names, got none for '{absent[0]}' ({len(absent)} of "
                f"{len(names)} are missing); fix the name or add the images"
            )
        classes[split] = {name: folder / name for name in names}
    return classes


def images_in(folder: Path, what: str = "the folder of a class") -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted; raise a UsageError if there are none."""
    files = sorted(file for file in visible_files(folder) if _is_image(file))
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"expected images in {what}, got none in {folder}; add files that end in {suffixes}")
    return files
