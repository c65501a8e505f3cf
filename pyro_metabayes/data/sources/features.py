"""Embeddings from the user: a file or folder with the arrays `features`, `labels`, and others that are optional."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.mapped import MappedRows
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz, reason_of

Arrays = Mapping[str, np.ndarray]
SUFFIXES = (".npz", ".safetensors")


def load(path: str = "", train: float = 0.64, val: float = 0.16, seed: int = 0) -> Bank:
    """The bank of an .npz or .safetensors file, or of a folder with a file NAME.npy for each array.

    The arrays are:
        features [N, D]: any float or integer type. They become float32 of unit length, the input of the few-shot heads.
            Those of a folder stay in their file; rows are read, checked and scaled when a batch of tasks is drawn.
        labels [N]: integers, or strings (not in .safetensors).
        split [N], optional: train, val or test (not in .safetensors), or 0, 1 or 2; the same for all rows of a class.
        partner [N], optional: a row of the same object, with which it shares support or query set, or the row itself.

    Args:
        path: the file or folder.
        train: fraction of the classes for training, if there is no array `split`.
        val: fraction of the classes for validation; the remaining classes are for test.
        seed: seed of the random assignment of classes to splits.
    """
    arrays = _read(path)
    _check_names(arrays, path)
    features, (names, labels) = _features(arrays["features"], path), _labels(arrays, path)
    if "split" in arrays:
        splits = _splits_of_rows(arrays["split"], labels, names, path)
    else:
        splits = _random_splits(len(names), train, val, seed)
    for split, classes in splits.items():
        if len(classes) == 0:
            raise UsageError(
                f"expected classes in every split, got none in {split} of {path} ({len(names)} classes in "
                "all); add classes, or assign them to splits in the array 'split'"
            )
    pairs = Pairs.of_rows(arrays["partner"], labels, path) if "partner" in arrays else None
    return replace(Bank.from_arrays(features, labels, splits, [str(name) for name in names]), pairs=pairs)


def _read(path: str) -> Arrays:
    if not path:
        raise UsageError("expected a file of features, got no path; set data.path=FILE.npz (or .safetensors)")
    file = user_path(path)
    if file.suffix.lower() not in SUFFIXES and not file.is_dir():
        raise UsageError(
            f"expected a folder of .npy files or a file that ends in {' or '.join(SUFFIXES)}, got {path}; write one "
            "with numpy.savez or safetensors.numpy.save_file"
        )
    if not file.exists():
        raise UsageError(f"expected a file of features, found none at {path}; fix data.path")
    try:
        return _arrays_of(file)
    except (*DAMAGED, SafetensorError) as error:
        reason = reason_of(error)
        raise UsageError(
            f"expected arrays without Python objects in {path}, which cannot be read ({reason}); {_remedy(reason)}"
        ) from error


def _remedy(reason: str) -> str:
    if "object" in reason.lower():  # numpy's term for pickled arrays
        return "arrays of Python objects are not loaded: save names with .astype(str) and numbers with .astype(float)"
    return "the file may be truncated: write the file again"


def _arrays_of(file: Path) -> Arrays:
    """The arrays of a file in memory, or of a folder memory-mapped; pickled objects are never loaded."""
    if file.is_dir():
        files = {name: file / f"{name}.npy" for name in _SHAPES}
        return {name: _map(array) for name, array in files.items() if array.is_file()}
    return load_file(file) if file.suffix.lower() == ".safetensors" else read_npz(file)


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except DAMAGED as error:
        raise ValueError(f"{file.name}: {reason_of(error)}") from error


_SHAPES = {"features": 2, "labels": 1, "split": 1, "partner": 1}  # number of axes


def _check_names(arrays: Arrays, path: str) -> None:
    """Raise a UsageError if features or labels are missing, or if the arrays have different numbers of rows."""
    for name in ("features", "labels"):
        if name not in arrays:
            there = ", ".join(sorted(arrays)) or "none"
            raise UsageError(f"expected an array '{name}' in {path}, got {there}; rename or add it")
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in arrays if name in _SHAPES}
    for name, length in lengths.items():
        if arrays[name].ndim != _SHAPES[name] or length != lengths["features"]:
            shapes = ", ".join(f"{key} {list(arrays[key].shape)}" for key in lengths)
            raise UsageError(
                f"expected features [N, D], labels [N] and split [N], if any, got {shapes} in {path}; "
                "give every input one row in each"
            )
    if arrays["features"].size == 0:
        raise UsageError(f"expected at least one row of features in {path}, got none; add data")


def _features(features: np.ndarray, path: str) -> np.ndarray | MappedRows:
    if features.dtype.kind not in "fiu":
        raise UsageError(f"expected numbers as features in {path}, got {features.dtype}; write them as float32")
    if not isinstance(features, np.memmap):
        return unit_length(features, np.arange(len(features)), path)
    if not features.flags.c_contiguous:
        raise UsageError(
            f"expected features in C order in {path}, got Fortran order; save numpy.ascontiguousarray(features)"
        )
    return MappedRows(features, partial(unit_length, path=path))


def unit_length(features: np.ndarray, numbers: np.ndarray, path: str) -> np.ndarray:
    """Rows [n, D] as float32 of unit length. `numbers` [n] are their row numbers in the file, for messages."""
    with np.errstate(over="ignore"):  # an overflow is reported as infinite
        rows = features.astype(np.float32)
    finite = np.isfinite(rows).all(1)
    if bad := int((~finite).sum()):
        raise UsageError(
            f"expected finite features in {path}, got NaN or infinity (as float32) in {bad} of {len(rows)} "
            f"rows; remove or fix them (the first is row {numbers[finite.argmin()]})"
        )
    largest = np.abs(rows).max(1, keepdims=True)
    if zero := int((largest == 0).sum()):
        raise UsageError(
            f"expected rows that can be scaled to unit length in {path}, got {zero} of {len(rows)} that are "
            f"all zero; remove them (the first is row {numbers[largest.argmin()]})"
        )
    rows = rows / largest  # so that the squares neither overflow nor underflow
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _labels(arrays: Arrays, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Names of the classes in sorted order, and the class of every row."""
    labels = arrays["labels"]
    if labels.dtype.kind not in "iuU":
        raise UsageError(
            f"expected integers or strings as labels in {path}, got {labels.dtype}; write "
            "labels.astype(int), or .astype(str) for names"
        )
    names, rows = np.unique(labels, return_inverse=True)
    return names, rows


def _splits_of_rows(split: np.ndarray, labels: np.ndarray, names: np.ndarray, path: str) -> Arrays:
    """Classes of each split, from the split of every row."""
    keys = np.array(SPLITS) if split.dtype.kind == "U" else np.arange(len(SPLITS))
    strange = np.setdiff1d(split, keys) if split.dtype.kind in "Uiu" else split[:1]
    if len(strange):
        raise UsageError(
            f"expected train, val, test or 0, 1, 2 in 'split' of {path}, got {strange[0]} ({split.dtype}); "
            "write one of these for every row"
        )
    splits = {name: np.unique(labels[split == key]) for name, key in zip(SPLITS, keys, strict=True)}
    places = np.bincount(np.concatenate(list(splits.values())), minlength=len(names))
    if (places > 1).any():
        first = int((places > 1).argmax())
        raise UsageError(
            f"expected each class in one split, got class '{names[first]}' in "
            f"{' and '.join(name for name in SPLITS if first in splits[name])} of {path} "
            f"({int((places > 1).sum())} such classes); give all its rows one split"
        )
    return splits


def rows_in_file(path: str) -> np.ndarray:
    """The row of the file [M] for every row of the bank, whose rows are sorted by class."""
    return np.argsort(_labels(_read(path), path)[1], kind="stable")


def _random_splits(num_classes: int, train: float, val: float, seed: int) -> Arrays:
    if not (train > 0 and val > 0 and train + val < 1):
        raise UsageError(
            f"expected fractions train > 0, val > 0 and train + val < 1, got train={train} and val={val}; "
            "the remaining classes are for test"
        )
    order = np.random.default_rng(seed).permutation(num_classes)
    first, second = math.floor(train * num_classes + 0.5), math.floor((train + val) * num_classes + 0.5)
    parts = (order[:first], order[first:second], order[second:])
    return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}
