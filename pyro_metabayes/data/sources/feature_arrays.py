"""Builds a bank (data set) from arrays `features`, `labels` and, optionally, `split`, `files` and `partner`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mapped import MappedRows
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.data.sources.division import Division, split_numbers
from pyro_metabayes.data.sources.from_users import labels_of_splits
from pyro_metabayes.errors import UsageError
from pyro_metabayes.validation.duplicates import note_duplicates

Arrays = Mapping[str, np.ndarray]
SHAPES = {"features": 2, "labels": 1, "split": 1, "partner": 1}  # number of axes


def bank_of_arrays(arrays: Arrays, division: Division, where: str, note: str = "") -> Bank:
    """Build a bank (data set) from a user's arrays.

    Args:
        arrays: the arrays by name, as `features.load` describes them.
        division: rule for dividing the data among the splits.
        where: the file, for messages.
        note: note that is printed when the bank is built; "": none.

    Raises:
        UsageError: an array is missing or unusable, or the array `split` contradicts the division.
    """
    _check_names(arrays, where)
    features, (names, labels) = _features(arrays["features"], where), _labels(arrays, where)
    given = split_numbers(arrays["split"], where) if "split" in arrays else None
    divided = division.divide(labels, [str(name) for name in names], given, where)
    pairs = Pairs.of_rows(arrays["partner"], divided.labels, where) if "partner" in arrays else None
    bank = replace(Bank.from_arrays(features, divided.labels, divided.splits, divided.names), pairs=pairs)
    return _noted(division.bank(bank), arrays, divided.labels, where, note)


def bank_of_classes(arrays: Arrays, splits: Any, where: str, note: str) -> Bank:
    """Build a bank (data set) from a user's arrays, with the classes that `splits` lists for each split."""
    _check_names(arrays, where)
    features, (names, labels) = _features(arrays["features"], where), _labels(arrays, where)
    chosen = labels_of_splits(splits, names)
    bank = Bank.from_arrays(features, names[labels], chosen, [str(name) for name in names])
    return _noted(bank, arrays, labels, where, note)


def _noted(bank: Bank, arrays: Arrays, labels: np.ndarray, where: str, note: str) -> Bank:
    """Return the bank (data set) with names of its rows, for messages.

    Prints the given note, and a note about identical rows if there are any.
    """
    if note:
        print(f"note: {note}", file=sys.stderr)
    files = arrays["files"] if len(arrays.get("files", ())) == len(labels) else None
    bank = replace(bank, origin=partial(_name_of, np.argsort(labels, kind="stable"), files))
    note_duplicates(bank, where)
    return bank


def _name_of(order: np.ndarray, files: np.ndarray | None, row: int) -> str:
    """Return the name of a row of the bank (data set): its file, or its row number in the arrays of the user."""
    number = int(order[row])
    return f"row {number}" if files is None else str(files[number])


def _check_names(arrays: Arrays, path: str) -> None:
    """Raise a UsageError if features or labels are missing, or if the arrays differ in their number of rows."""
    for name in ("features", "labels"):
        if name not in arrays:
            there = ", ".join(sorted(arrays)) or "none"
            raise UsageError(f"expected an array '{name}' in {path}, got {there}; rename or add an array")
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in arrays if name in SHAPES}
    for name, length in lengths.items():
        if arrays[name].ndim != SHAPES[name] or length != lengths["features"]:
            shapes = ", ".join(f"{key} {list(arrays[key].shape)}" for key in lengths)
            raise UsageError(
                f"expected features [N, D], labels [N] and, if present, split [N] in {path}, got {shapes}; "
                "give each array one row per input"
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
    """Convert feature vectors [n, D] to float32 and scale them to unit length.

    Args:
        features: n feature vectors with D features.
        numbers: [n], row numbers of these vectors in the file, for messages.
        path: the file, for messages.
    """
    with np.errstate(over="ignore"):  # an overflow is reported as infinite
        rows = features.astype(np.float32)
    finite = np.isfinite(rows).all(1)
    if bad := int((~finite).sum()):
        raise UsageError(
            f"expected finite features in {path}, got NaN or infinity (as float32) in {bad} of {len(rows)} "
            f"rows; remove or fix these rows (the first is row {numbers[finite.argmin()]})"
        )
    largest = np.abs(rows).max(1, keepdims=True)
    if zero := int((largest == 0).sum()):
        raise UsageError(
            f"expected feature vectors that can be scaled to unit length in {path}, got {zero} of {len(rows)} that "
            f"are all zero; remove these rows (the first is row {numbers[largest.argmin()]})"
        )
    rows = rows / largest  # so that the squares neither overflow nor underflow
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _labels(arrays: Arrays, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the classes in sorted order, and for every row the index of its class."""
    labels = arrays["labels"]
    if labels.dtype.kind not in "iuU":
        raise UsageError(
            f"expected integers or strings as labels in {path}, got {labels.dtype}; write "
            "labels.astype(int), or .astype(str) for names"
        )
    names, rows = np.unique(labels, return_inverse=True)
    return names, rows
