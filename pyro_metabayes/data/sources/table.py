"""Columns of numbers from a CSV file; errors name the line."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyro_metabayes.data.sources.csv_rows import SEPARATORS, Cells, Header, rows_of
from pyro_metabayes.errors import UsageError, check_choice

GAPS = {"", "na", "n/a", "nan", "null", "none", "."}  # a missing number, as R, pandas, SQL and SAS write it
DECIMALS, MISSING = ("point", "comma"), ("refuse", "drop")


@dataclass
class _Gaps:
    """Rows that lack a cell."""

    columns: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    first: str = ""

    def add(self, columns: Sequence[str], cell: str, line: int) -> None:
        self.columns.update(columns)
        self.rows += 1
        self.first = self.first or f"'{cell}' in column '{columns[0]}' on line {line}"


def read_columns(
    header: Header, keys: str, numbers: Sequence[str], missing: str = "refuse", decimal: str = "point"
) -> tuple[list[str], np.ndarray, list[str]]:
    """The cells of column `keys` as they stand, those of `numbers` as finite float64 [N, columns], and notes.

    Args:
        header: of the file.
        keys: a column of text.
        numbers: columns of numbers.
        missing: "refuse", or "drop" the rows that lack a key or a number; with "drop" a key such as NA is a gap too.
        decimal: "point" or "comma".

    Raises:
        UsageError: a cell without a key or number, a row of another length, or no rows.
    """
    check_choice("data.missing", missing, MISSING)
    check_choice("data.decimal", decimal, DECIMALS)
    names: dict[str, str] = {}  # one copy of each string
    keys_of_rows, values, gaps = [], array("d"), _Gaps()
    for line, (key, *cells) in rows_of(header, [keys, *numbers]):
        key = key.strip()
        if lacking := _lacking(key, cells, keys, numbers, missing):
            gaps.add([name for name, _ in lacking], lacking[0][1], line)
            continue
        keys_of_rows.append(names.setdefault(key, key))
        for column, cell in zip(numbers, cells, strict=True):
            values.append(_number(cell, column, decimal, line, header.path))
    notes = _notes_of_gaps(gaps, len(keys_of_rows), missing, header.path)
    if not keys_of_rows:
        raise UsageError(f"expected rows below the header of {header.path}, got none; bring data")
    if header.separator != ",":
        notes = [f"{header.path} is read with {SEPARATORS[header.separator]} between its cells", *notes]
    return keys_of_rows, np.frombuffer(values).reshape(len(keys_of_rows), -1), notes


def _lacking(key: str, cells: Cells, keys: str, numbers: Sequence[str], missing: str) -> list[tuple[str, str]]:
    """The columns of a row without a value, and what stands there; unless gaps are dropped a group may be called NA."""
    gaps = GAPS if missing == "drop" else {""}
    lacking = [(keys, key)] if key.lower() in gaps else []
    return lacking + [(name, cell) for name, cell in zip(numbers, cells, strict=True) if cell.strip().lower() in GAPS]


def _notes_of_gaps(gaps: _Gaps, complete: int, missing: str, path: Path) -> list[str]:
    if not gaps.rows:
        return []
    how_many = f"{gaps.rows} of {gaps.rows + complete} rows of {path}"
    if missing == "refuse":
        raise UsageError(
            f"expected a value in every cell, got gaps in {how_many}, the first: {gaps.first}; fill them, or set "
            "data.missing=drop to leave these rows out"
        )
    columns = ", ".join(f"{count} in column '{name}'" for name, count in gaps.columns.items())
    return [f"left out {how_many}, which have gaps: {columns}"]


def _number(cell: str, name: str, decimal: str, line: int, path: Path) -> float:
    text = cell.replace(".", "?").replace(",", ".") if decimal == "comma" else cell
    value = math.nan
    with suppress(ValueError):
        if text.isascii() and "_" not in text:  # float reads 1_000 as 1000
            value = float(text)
    if not math.isfinite(value):
        raise UsageError(
            f"expected a finite number in column '{name}', got '{cell}' on line {line} of {path}; {_remedy(cell)}"
        )
    return value


def _remedy(cell: str) -> str:
    if not any(sign.isdigit() for sign in cell):
        return "code a column of text as numbers, or fix the cell"
    return "write 1234.5, without thousands separators or units; data.decimal=comma reads 1234,5"
