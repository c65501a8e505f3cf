"""Reads embeddings of the user from a file or folder with arrays `features`, `labels` and, optionally, `split`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources.division import Division
from pyro_metabayes.data.sources.feature_arrays import SHAPES, Arrays, bank_of_arrays
from pyro_metabayes.data.sources.frames import LABEL, TABLES, arrays_of, table_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import DAMAGED, read_npz, reason_of

SUFFIXES = (".npz", ".safetensors", *TABLES)


def load(
    path: str = "",
    train: float = 0.64,
    val: float = 0.16,
    seed: int = 0,
    split: str = "classes",
    label: str = LABEL,
    columns: list[str] | None = None,
) -> Bank:
    """Return the bank (data set) of a file .npz, .safetensors, .parquet or .csv, or of a folder of files NAME.npy.

    In a folder, NAME is the name of an array. The arrays have one row for each of N inputs:
        features [N, D]: any float or integer type. Rows are converted to float32 and scaled to unit length. The
            features of a folder stay in the file, which may be larger than memory. Their rows are read, checked and
            scaled when a task needs them.
        labels [N]: integers, or strings (not in .safetensors).
        split [N], optional: train, val or test (not in .safetensors), or 0, 1 or 2. With split="classes", all rows of
            a class have the same value.
        files [N], optional (not in a folder): names of the rows, for notes.
        partner [N], optional: number of another row of the same object, or the row's own number if there is none. Both
            rows of such a pair go into the support set or both into the query set of a task.
    A table (.parquet, .csv) has columns in place of arrays: `label`, `columns` and, optionally, `split` and `file`.

    Args:
        path: the file or folder.
        train: fraction for training, if there is no array `split`.
        val: fraction for validation; the rest is for test.
        seed: seed of the random assignment to splits.
        split: what is divided among training, validation and test: classes, rows or none (`Division`).
        label: for a table, the column of labels.
        columns: for a table, the columns of features, or one column of lists; None: the column of lists, else all
            columns of floats, else all of integers. A printed note names the columns that are not used.
    """
    division, read, note = Division(split, train, val, seed), _read(path), ""
    if user_path(path).suffix.lower() in TABLES:
        read, note = arrays_of(read, label, columns, path)
    elif label != LABEL or columns:
        raise UsageError(
            f"expected a .parquet or .csv file with data.label or data.columns, got {path}; remove these two settings"
        )
    return bank_of_arrays(read, division, path, note)


def _read(path: str) -> Any:
    """Read the arrays of a file or folder, by name, or the table of a .parquet or .csv file."""
    if not path:
        raise UsageError("expected a file of features, got no path; set data.path=FILE.npz (or .safetensors)")
    file = user_path(path)
    if file.suffix.lower() not in SUFFIXES and not file.is_dir():
        raise UsageError(
            f"expected a folder of .npy files or a file that ends in {' or '.join(SUFFIXES)}, got {path}; write one "
            "with numpy.savez, safetensors.numpy.save_file or DataFrame.to_parquet"
        )
    if not file.exists():
        raise UsageError(f"expected a file of features, found none at {path}; fix data.path")
    try:
        return table_of(file) if file.suffix.lower() in TABLES else _arrays_of(file)
    except UsageError:
        raise
    except (*DAMAGED, SafetensorError) as error:
        reason = reason_of(error)
        raise UsageError(
            f"expected a file of arrays, got {path}, which cannot be read ({reason}); {_remedy(reason)}"
        ) from error


def _remedy(reason: str) -> str:
    if "object" in reason.lower():  # numpy's term for pickled arrays
        return "save names with .astype(str) and numbers with .astype(float), since arrays of objects are not loaded"
    return "write the file again, since it may be truncated"


def _arrays_of(file: Path) -> Arrays:
    """Read the arrays of a file into memory, or memory-map the arrays of a folder. Pickled objects are never loaded."""
    if file.is_dir():
        files = {name: file / f"{name}.npy" for name in SHAPES}
        return {name: _map(array) for name, array in files.items() if array.is_file()}
    return load_file(file) if file.suffix.lower() == ".safetensors" else read_npz(file)


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except DAMAGED as error:
        raise ValueError(f"{file.name}: {reason_of(error)}") from error
