"""Columns of numbers from a CSV file; errors name the line."""

from __future__ import annotations

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyro_metabayes.errors import UsageError, check_choice

Cells = Sequence[str]
Name = str | int | float | bool | None  # a column's name, as a command line or YAML file reads it: 2015 is an integer

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
GAPS = {"", "na", "n/a", "nan", "null", "none", "."}  # a missing number, as R, pandas, SQL and SAS write it
DECIMALS, MISSING = ("point", "comma"), ("refuse", "drop")


@dataclass(frozen=True)
class Header:
    """The names of the columns of a CSV file, and what separates its cells."""

    path: Path
    separator: str
    names: Cells

    def name_of(self, name: Name) -> str:
        """The one column that is meant.

        Raises:
            UsageError: no column has that name, or several have it.
        """
        found = matching(name, self.names)
        if len(found) != 1:
            how_many = f"several ({', '.join(found)}; a name in quotes is exact)" if found else "none"
            raise UsageError(
                f"expected one column '{_text(name)}' in {self.path}, got {how_many}; there are: "
                f"{', '.join(self.names) or 'no header'}; fix data.group, data.predictors or data.response"
            )
        return found[0]


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


def matching(name: Name, texts: Sequence[str]) -> list[str]:
    """Those texts that are this name, or that a command line reads as it: 2015 as an integer, null as None."""
    if isinstance(name, str):
        return [text for text in texts if text == name]
    return [text for text in texts if repr(_as_read(text)) == repr(name)]


def _as_read(text: str) -> Name:
    words: dict[str, Name] = {"null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _text(name: Name) -> str:
    return "null" if name is None else str(name).lower() if isinstance(name, bool) else str(name)


def header_of(path: Path, columns: Sequence[Name]) -> Header:
    """The header of a file; the separator is the first under which it has all these columns, else a comma."""
    if not path.is_file():
        raise UsageError(f"expected a CSV file, found none at {path}; fix data.path")
    headers = [Header(path, separator, _first_row(path, separator)) for separator in SEPARATORS]
    complete = [header for header in headers if all(matching(name, header.names) for name in columns)]
    return complete[0] if complete else max(headers, key=lambda header: len(header.names))


def _first_row(path: Path, separator: str) -> Cells:
    with _utf8(path), suppress(csv.Error), path.open(newline="", encoding="utf-8-sig") as file:
        return [name.strip() for name in next(csv.reader(file, strict=True, delimiter=separator), [])]
    return []


@contextmanager
def _utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"expected a CSV file in UTF-8 at {path}, got one with '{error}'; save it again as CSV (UTF-8)"
        ) from None


def read_columns(
    header: Header, keys: str, numbers: Sequence[str], missing: str = "refuse", decimal: str = "point"
) -> tuple[list[str], np.ndarray, list[str]]:
    """The cells of column `keys` as they stand, those of `numbers` as finite float64 [N, columns], and notes.

    Args:
        header: of the file.
        keys: a column of text.
        numbers: columns of numbers.
        missing: "refuse", or "drop" the rows that lack a key or a number.
        decimal: "point" or "comma".

    Raises:
        UsageError: a cell without a key or number, a row of another length, or no rows.
    """
    check_choice("data.missing", missing, MISSING)
    check_choice("data.decimal", decimal, DECIMALS)
    names: dict[str, str] = {}  # one copy of each string
    keys_of_rows, values, gaps = [], array("d"), _Gaps()
    for line, (key, *cells) in _rows(header, [keys, *numbers]):
        key = key.strip()
        if lacking := _lacking(key, cells, keys, numbers):
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


def _rows(header: Header, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """The line of the file, and its cells of the columns, row by row."""
    with _utf8(header.path), header.path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True, delimiter=header.separator)
        next(lines, None)
        places = [header.names.index(name) for name in columns]
        for line in filter(any, lines):
            _check_length(line, header, lines.line_num)
            yield lines.line_num, [line[place] for place in places]


def _check_length(line: Cells, header: Header, number: int) -> None:
    if len(line) != len(header.names):
        raise UsageError(
            f"expected {len(header.names)} cells as in the header, got {len(line)} on line {number} of {header.path}; "
            "put a cell that holds the separator in quotes"
        )


def _lacking(key: str, cells: Cells, keys: str, numbers: Sequence[str]) -> list[tuple[str, str]]:
    """The columns of a row without a value, and what stands there; a group may be called NA."""
    lacking = [] if key else [(keys, key)]
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
