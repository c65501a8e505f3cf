"""Columns of numbers from a CSV file; errors name the line."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pyro_metabayes.errors import UsageError

Cells = Sequence[str]


def read_columns(path: Path, keys: str, numbers: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The cells of column `keys` as they stand, and those of the columns `numbers` as finite float64 [N, columns]."""
    names: dict[str, str] = {}  # one copy of each string
    keys_of_rows, values = [], array("d")
    for line, (name, *cells) in _rows(path, [keys, *numbers]):
        key = _key(name, keys, line, path)
        keys_of_rows.append(names.setdefault(key, key))
        values.extend(_number(cell, column, line, path) for column, cell in zip(numbers, cells, strict=True))
    if not keys_of_rows:
        raise UsageError(f"expected rows below the header of {path}, got none; bring data")
    return keys_of_rows, np.frombuffer(values).reshape(len(keys_of_rows), -1)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """The line of the file, and its cells of the columns, row by row."""
    if not path.is_file():
        raise UsageError(f"expected a CSV file, found none at {path}; fix data.path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(header, columns, path)
            places = [header.index(name) for name in columns]
            for line in filter(any, lines):
                _check_length(line, header, lines.line_num, path)
                yield lines.line_num, [line[place] for place in places]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"expected a CSV file in UTF-8 at {path}, got one with '{error}'; save it anew") from None


def _check_header(header: Sequence[str], columns: Sequence[str], path: Path) -> None:
    for name in columns:
        if header.count(name) != 1:
            how_many = "several" if name in header else "none"
            there = ", ".join(header) or "no header"
            raise UsageError(
                f"expected one column '{name}' in {path}, got {how_many}; there are: {there}; fix data.group, "
                "data.predictors or data.response, or separate the columns with commas"
            )


def _check_length(line: Cells, header: Cells, number: int, path: Path) -> None:
    if len(line) != len(header):
        raise UsageError(f"expected {len(header)} cells as in the header, got {len(line)} on line {number} of {path}")


def _key(cell: str, name: str, line: int, path: Path) -> str:
    if not cell.strip():
        raise UsageError(f"expected a name in column '{name}', got no text on line {line} of {path}; drop the row")
    return cell.strip()


def _number(cell: str, name: str, line: int, path: Path) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"expected a finite number in column '{name}', got '{cell}' on line {line} of {path}; fix or drop the row "
            "(a column of text: code it as numbers)"
        )
    return value
