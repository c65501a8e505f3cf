"""Reads features and labels from the columns of a table: a data frame, or a .parquet or .csv file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_metabayes.errors import UsageError

LABEL = "label"
TABLES = (".parquet", ".csv")
OTHERS = {"split": "split", "file": "files", "files": "files"}  # columns that are arrays of their own
MOST_NAMES = 8  # largest number of columns that a message lists

Arrays = Mapping[str, np.ndarray]


def table_of(file: Path) -> Any:
    """Read the table in a .parquet or .csv file, as a pyarrow table.

    Raises:
        UsageError: pyarrow is not installed.
        An exception in `untrusted.DAMAGED`: the file is not a table of this format.
    """
    format_of = {".parquet": "pyarrow.parquet", ".csv": "pyarrow.csv"}[file.suffix.lower()]
    try:
        module = importlib.import_module(format_of)
    except ModuleNotFoundError:
        raise UsageError(
            f"expected the package pyarrow to read {file}, not found; run: pip install 'pyro_metabayes[parquet]', or "
            "write an .npz file"
        ) from None
    return module.read_table(file) if file.suffix.lower() == ".parquet" else module.read_csv(file)


class Read(NamedTuple):
    """Arrays read from a table.

    arrays: features, labels and, if the table has these columns, split and files.
    note: a note for the user that names the columns that are not used; "" if there are none.
    """

    arrays: Arrays
    note: str


def arrays_of(frame: Any, label: str, columns: Sequence[str] | None, where: str) -> Read:
    """Read features, labels and, if present, splits and file names from the columns of a table.

    Args:
        frame: a data frame of pandas or polars, or a table of pyarrow.
        label: the column of labels.
        columns: the columns of features, or one column of lists; None: the column of lists, else all columns of
            floats, else all columns of integers.
        where: the file, for messages.

    Raises:
        UsageError: a column is missing or unusable.
    """
    names = [str(name) for name in (frame.column_names if hasattr(frame, "column_names") else frame.columns)]
    values = dict(zip(names, (_column(frame, index) for index in range(len(names))), strict=True))
    _refuse_missing([label, *(columns or ())], names, where)
    taken = {label, *(name for name in OTHERS if name in values)} - {*(columns or ())}
    chosen = list(columns or _chosen({name: values[name] for name in names if name not in taken}, where))
    arrays = {OTHERS[name]: _plain(values[name], name, where) for name in OTHERS if name in values}
    arrays["features"] = _features([values[name] for name in chosen], chosen, where)
    arrays["labels"] = _plain(values[label], label, where)
    unused = [name for name in names if name not in {*chosen, *taken}]
    return Read(arrays, f"features of {where}: {_listed(chosen)}; not used: {_listed(unused)}" if unused else "")


def _column(frame: Any, index: int) -> np.ndarray:
    if hasattr(frame, "column_names"):
        return np.asarray(frame.column(index))
    return np.asarray(frame.iloc[:, index] if hasattr(frame, "iloc") else frame.to_series(index))


def _chosen(values: Arrays, where: str) -> list[str]:
    """Choose the columns of features: the column of lists, else all columns of floats, else all of integers."""
    lists = [name for name, value in values.items() if _holds_lists(value)]
    if len(lists) > 1:
        raise UsageError(
            f"expected one column of lists in {where}, got {_listed(lists)}; set the argument "
            "columns (in a run: data.columns=[NAME])"
        )
    for kinds in ("f", "iu"):
        lists = lists or [name for name, value in values.items() if value.dtype.kind in kinds]
    if not lists:
        raise UsageError(
            f"expected columns of features in {where}, got {_listed(list(values))}; set the argument "
            "columns (in a run: data.columns=[...])"
        )
    return lists


def _holds_lists(value: np.ndarray) -> bool:
    return value.ndim == 2 or (value.dtype == object and len(value) > 0 and isinstance(value[0], list | np.ndarray))


def _features(values: Sequence[np.ndarray], names: Sequence[str], where: str) -> np.ndarray:
    """Return features [N, D] of N rows, from D columns of numbers or from one column of lists of D numbers."""
    if len(values) == 1 and _holds_lists(values[0]):
        lengths = {np.shape(row) for row in values[0]}
        if len(lengths) > 1:
            raise UsageError(
                f"expected lists of one length in column '{names[0]}' of {where}, got {len(lengths)} different "
                "lengths (a missing value counts as one); fix or drop rows"
            )
        return np.stack(list(values[0]))
    for name, value in zip(names, values, strict=True):
        if value.ndim != 1 or value.dtype.kind not in "fiu":
            raise UsageError(
                f"expected numbers in column '{name}' of {where}, got {_kind_of(value)}; leave the column out of "
                "data.columns, or convert it to numbers and fill missing values"
            )
    return np.column_stack(values)


def _kind_of(value: np.ndarray) -> str:
    kinds = {type(item).__name__ for item in value.ravel()} if value.dtype == object else {str(value.dtype)}
    return " and ".join(sorted(kinds))


def _plain(value: np.ndarray, name: str, where: str) -> np.ndarray:
    """Return a column of integers or text as an array of integers or text, not of objects as in data frames."""
    if value.dtype != object and value.dtype.kind in "iuU":
        return value
    other = next((row for row, item in enumerate(value) if not isinstance(item, str)), None)
    if other is not None:
        kind = type(value[other]).__name__
        raise UsageError(
            f"expected only text, or only integers, in column '{name}' of {where}, got {kind} in row "
            f"{other}; convert the column, and fill or drop missing values"
        )
    return value.astype(str)


def _refuse_missing(wanted: Sequence[str], names: Sequence[str], where: str) -> None:
    if len({*names}) < len(names):
        raise UsageError(f"expected columns with different names in {where}, got {_listed(names)}; rename columns")
    for name in wanted:
        if name not in names:
            setting = "label (in a run: data.label)" if name == wanted[0] else "columns (in a run: data.columns)"
            raise UsageError(f"expected a column '{name}' in {where}, got {_listed(names)}; set {setting}")


def _listed(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names) or "none"
    return f"{', '.join(names[: MOST_NAMES - 2])}, ... {names[-1]} ({len(names)} columns)"
