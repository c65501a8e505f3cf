"""PACS: seven classes of objects in four domains, art_painting, cartoon, photo and sketch; 9,991 images of 227 x 227.

Li, Yang, Song and Hospedales, "Deeper, Broader and Artier Domain Generalization", ICCV 2017 (arXiv 1710.03077).

The images are read from METABAYES_DATA/pacs, in the layout of the authors' archive: kfold/DOMAIN/CLASS/*.jpg (sketch:
*.png). The class of an image is its folder.

The authors' split files DOMAIN_train_kfold.txt and DOMAIN_crossval_kfold.txt are searched in pacs/, pacs/kfold/ and
pacs/splits/. They have one line "DOMAIN/CLASS/FILE LABEL" per image; the label is not used. Without split files, every
tenth image of a class is for validation: as many images as with the split files, but not the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyro_metabayes.data.domains import DomainBank, domain_bank, domain_rows, leave_one_out
from pyro_metabayes.data.sources.images import READING, all_pixels
from pyro_metabayes.data.sources.listing import lines_of, visible
from pyro_metabayes.data.sources.parts import Part
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_folder

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = ("", "kfold", "splits")  # subfolders in which split files are searched
FAULTY = "sketch/dog/n02103406_4068-1.png"  # an image of the archive that is known to be wrong
HINT = "unpack PACS there, as kfold/DOMAIN/CLASS/*.jpg"
Files = dict[str, list[Path]]


def load(target: str = "sketch", validation: str = "", size: int = 84, train_shift: float = 0.0) -> DomainBank:
    """Load PACS: images of the source domains (train, val) and of the target domain (test), uint8 [M, 3, size, size].

    M is the number of images.

    Args:
        target: the domain that is left out of training; all of its images are for the test.
        validation: a source that is used for validation only; "": validation uses validation images of every source.
        size: side, in pixels, of the square to which images are resized (Lanczos).
        train_shift: largest random shift of the features of a training task (domains.DomainBank).
    """
    if size < 1:
        raise UsageError(f"expected data.size >= 1, got {size}; change data.size")
    domains = leave_one_out(DOMAINS, target, validation)
    root = data_folder("pacs", HINT)
    parts = {split: _part(root, split, names, size) for split, names in domains.items()}
    return domain_bank("pacs", parts, {"domains": domains, "size": size, "reading": READING}, len(CLASSES), train_shift)


def _part(root: Path, split: str, domains: Sequence[str], size: int) -> Part:
    images = {domain: files_of(root, domain, split) for domain in domains}
    files = [file for classes in images.values() for names in classes.values() for file in names]
    return Part(files, partial(domain_rows, split, images, lambda paths: all_pixels(paths, size)))


def files_of(root: Path, domain: str, split: str) -> Files:
    """Return the image files of each class of a domain in a split; the test split has all images of its domain."""
    every = {name: _images(root / "kfold" / domain / name) for name in CLASSES}
    if split == "test":
        return every
    train, crossval = (_names_in_list(root, domain, part) for part in ("train", "crossval"))
    if train is None or crossval is None:
        return {name: _tenths(files, split == "val") for name, files in every.items()}
    if both := sorted(train & crossval):
        raise UsageError(f"expected each image of {domain} in one split file, got {both[0]} in two; fix the files")
    names = train if split == "train" else crossval
    _refuse_absent(names, every, domain)
    return {name: [file for file in files if f"{domain}/{name}/{file.name}" in names] for name, files in every.items()}


def _tenths(files: Sequence[Path], validation: bool) -> list[Path]:
    """Return every tenth file, for validation, or all other files, for training."""
    return [file for place, file in enumerate(files) if (place % 10 == 0) == validation]


def _images(folder: Path) -> list[Path]:
    files = visible(folder) if folder.is_dir() else []
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    images = [file for file in images if not file.as_posix().endswith(FAULTY)]
    if not images:
        raise UsageError(f"expected images in {folder}, got none; {HINT}")
    return images


def _names_in_list(root: Path, domain: str, part: str) -> set[str] | None:
    """Return the name DOMAIN/CLASS/FILE of every image in a split file; None if there is no such file."""
    for folder in FOLDERS:
        path = root / folder / f"{domain}_{part}_kfold.txt"
        if path.is_file():
            return {line.split()[0] for line in lines_of(path)} - {FAULTY}
    return None


def _refuse_absent(names: set[str], images: Files, domain: str) -> None:
    there = {f"{domain}/{name}/{file.name}" for name, files in images.items() for file in files}
    if absent := sorted(names - there):
        raise UsageError(
            f"expected all images in the split files of {domain}, found no {absent[0]} ({len(absent)} of "
            f"{len(names)} are missing); unpack PACS again, or remove the split files"
        )
