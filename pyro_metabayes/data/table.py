"""Columns of numbers from a CSV file, or one line that says what is wrong where."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from pyro_metabayes.errors import UsageError

Rows = list[tuple[int, dict[str, str]]]  # the line of the file, and a cell for each name of the header


def read_columns(path: Path, keys: str, numbers: Sequence[str]) -> tuple[list[str], list[list[float]]]:
    """The cells of column `keys` as they stand, and those of the columns `numbers`, row by row, as finite floats."""
    rows = _rows(path, [keys, *numbers])
    names = [_filled(cells[keys], keys, line, path) for line, cells in rows]
    return names, [[_number(cells[name], name, line, path) for name in numbers] for line, cells in rows]


def _rows(path: Path, wanted: Sequence[str]) -> Rows:
    if not path.is_file():
        raise UsageError(f"expected a CSV file, found none at {path}; mend data.path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(header, wanted, path)
            rows = [(lines.line_num, _cells(header, line, lines.line_num, path)) for line in lines if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"expected a CSV file in UTF-8 at {path}, got one with '{error}'; save it anew") from None
    if not rows:
        raise UsageError(f"expected rows below the header of {path}, got none; bring data")
    return rows


def _check_header(header: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    for name in wanted:
        if header.count(name) != 1:
            how_many = "several" if name in header else "none"
            there = ", ".join(header) or "no header"
            raise UsageError(
                f"expected one column '{name}' in {path}, got {how_many}; there are: {there}; mend data.group, "
                "data.predictors or data.response"
            )


def _cells(header: Sequence[str], line: Sequence[str], number: int, path: Path) -> dict[str, str]:
    if len(line) != len(header):
        raise UsageError(f"expected {len(header)} cells as in the header, got {len(line)} on line {number} of {path}")
    return dict(zip(header, line, strict=True))


def _filled(cell: str, name: str, line: int, path: Path) -> str:
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
            f"expected a finite number in column '{name}', got '{cell}' on line {line} of {path}; mend or drop the row"
        )
    return value
