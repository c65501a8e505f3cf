"""Images from the user: one folder per class, and a split of the classes.

There are two layouts. In the first, FOLDER/train, FOLDER/val and FOLDER/test contain the folders of their classes. In
the second, FOLDER contains the folders of all classes, and train.txt, val.txt and test.txt with the names of the
classes, one per line. Hidden files and folders, and those that operating systems create (listing.py), are ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.images import MODES, READING, Colour, all_pixels, colour_of
from pyro_metabayes.data.sources.listing import is_hidden, lines_of, linked_folders, visible, visible_files
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of, refuse_shared
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import plain_name

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MOST_SUFFIXES = 3  # largest number of suffixes of ignored files that the note lists
LAYOUT = "train/, val/ and test/, each with one folder per class, or one folder per class and a train.txt, ..."


def load(path: str = "", size: int = 84, channels: int = 3, background: str = "white") -> Bank:
    """uint8 images [M, channels, size, size], converted once and kept in the cache.

    Args:
        path: the folder. Files without the suffix of an image, and linked folders within a class, are ignored; a note
            says how many.
        size: side, in pixels, of the square to which every image is resized (Lanczos), whatever its shape.
        channels: 3 (colour) or 1 (grey).
        background: colour behind transparent pixels: a name such as black, or #rrggbb.
    """
    if size < 1 or channels not in MODES:
        raise UsageError(f"expected data.size >= 1 and data.channels 1 or 3, got {size} and {channels}")
    colour, folder = colour_of(background), user_path(path)
    classes = _classes(path)
    refuse_shared({split: list(folders) for split, folders in classes.items()}, folder)
    parts = {split: _part(folders, size, channels, colour) for split, folders in classes.items()}
    note_left_out(folder, [inner for folders in classes.values() for inner in folders.values()])
    settings = {"size": size, "channels": channels, "background": colour, "reading": READING}
    return bank_of("image_folder", parts, settings)


def files(path: str) -> list[Path]:
    """The file of every row of the bank, relative to the folder."""
    classes, folder = _classes(path), user_path(path)
    named = [inner for split in SPLITS for _, inner in sorted(classes[split].items())]
    return [file.relative_to(folder) for inner in named for file in images_in(inner)]


def _classes(path: str) -> dict[str, dict[str, Path]]:
    """Folder of each class of each split, in one of the two layouts."""
    folder = user_path(path)
    if not path or not folder.is_dir():
        raise UsageError(f"expected a folder of images, got '{path}'; set data.path to one with {LAYOUT}")
    return _classes_of_lists(folder) if (folder / "train.txt").is_file() else _classes_of_folders(folder)


def note_left_out(folder: Path, classes: Sequence[Path]) -> None:
    """Print how many files and linked folders in the folders of the classes are ignored."""
    others = [file for inner in classes for file in visible_files(inner) if not _is_image(file)]
    linked = sum(len(linked_folders(inner)) for inner in classes)
    suffixes = ", ".join(sorted({file.suffix.lower() or "no suffix" for file in others})[:MOST_SUFFIXES])
    counts = [f"{len(others)} files without the suffix of an image ({suffixes})"] if others else []
    counts += [f"{linked} linked folders within classes"] if linked else []
    if counts:
        print(f"note: left out of {folder}: {' and '.join(counts)}", file=sys.stderr)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _classes_of_folders(folder: Path) -> dict[str, dict[str, Path]]:
    """Folder of each class of each split: FOLDER/SPLIT/CLASS."""
    if missing := [split for split in SPLITS if not (folder / split).is_dir()]:
        raise UsageError(f"expected a folder {folder / missing[0]}, got none; {folder} must contain {LAYOUT}")
    return {split: {inner.name: inner for inner in visible(folder / split) if inner.is_dir()} for split in SPLITS}


def _classes_of_lists(folder: Path) -> dict[str, dict[str, Path]]:
    """Folder of each class of each split: FOLDER/CLASS, where FOLDER/SPLIT.txt lists CLASS."""
    classes = {}
    for split in SPLITS:
        file = folder / f"{split}.txt"
        if not file.is_file():
            raise UsageError(f"expected the names of the {split} classes in {file}, got no such file; create it")
        names = [plain_name(name, file) for name in lines_of(file)]
        if hidden := [name for name in names if is_hidden(name)]:
            raise UsageError(
                f"expected names of classes in {file}, got '{hidden[0]}', a hidden folder or one that an operating "
                "system has left behind; remove it from the list"
            )
        if absent := [name for name in names if not (folder / name).is_dir()]:
            raise UsageError(
                f"expected a folder for every class that {file} names, got none for '{absent[0]}' ({len(absent)} of "
                f"{len(names)} are missing); fix the name or add the images"
            )
        classes[split] = {name: folder / name for name in names}
    return classes


def _part(classes: Mapping[str, Path], size: int, channels: int, background: Colour) -> Part:
    images = {name: images_in(classes[name]) for name in sorted(classes)}
    files = [file for names in images.values() for file in names]
    sizes = {name: len(names) for name, names in images.items()}
    return Part(files, lambda: Rows(sizes, all_pixels(files, size, channels, background)))


def images_in(folder: Path, what: str = "the folder of a class") -> list[Path]:
    """The image files in a folder and its subfolders, sorted; a UsageError if there are none."""
    found = sorted(file for file in visible_files(folder) if _is_image(file))
    if not found:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"expected images in {what}, got none in {folder}; suffixes: {suffixes}")
    return found
