"""Reads columns of numbers and text from a CSV file; error messages name the line."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyro_metabayes.data.sources.gaps import Gaps, is_gap, is_missing_code, lacking_of, notes_of_gaps
from pyro_metabayes.data.sources.header import SEPARATORS, Cells, Header, complete_rows, utf8
from pyro_metabayes.errors import UsageError, check_choice

NOT_FINITE = ("inf", "infinity")  # words that float() accepts, but that are refused as numbers
DECIMALS, MISSING = ("point", "comma"), ("refuse", "drop")


@dataclass(frozen=True)
class Reading:
    """Settings for reading the cells of a CSV file.

    Args:
        missing: "refuse" or "drop" rows without a key (the name of the group) or without a number.
        decimal: decimal separator, "point" or "comma".
        levels: levels of each column of text; None: the levels of the file. A cell becomes the index of a level.
        optional: columns of numbers in which a missing value becomes NaN.
        predictors: columns that data.factors may declare as text, for messages.
    """

    missing: str = "refuse"
    decimal: str = "point"
    levels: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    optional: Sequence[str] = ()
    predictors: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_choice("data.missing", self.missing, MISSING)
        check_choice("data.decimal", self.decimal, DECIMALS)


@dataclass(frozen=True)
class Columns:
    """Columns read from the N rows of a CSV file.

    Attributes:
        keys: [N], the key of each row, such as the name of its group.
        values: float64 [N, columns]; text is replaced by the index of its level.
        levels: levels of each column of text.
        notes: notes for the user, one line each.
    """

    keys: list[str]
    values: np.ndarray
    levels: dict[str, list[str]]
    notes: list[str]


def read_columns(header: Header, keys: str | None, columns: Sequence[str], reading: Reading) -> Columns:
    """Read `columns` of a CSV file as numbers, and the column `keys` as text. keys=None: all rows have the same key.

    Raises:
        UsageError: there are no rows, a key or a number is missing, a level is unknown, or a row does not have as many
            cells as the header.
    """
    names: dict[str, str] = {}  # one copy of each string
    keys_of_rows, values, gaps = [], array("d"), Gaps()
    levels = {name: {level: i for i, level in enumerate(given or ())} for name, given in reading.levels.items()}
    required = [name for name in columns if name not in reading.optional]
    places = [columns.index(name) for name in required]
    for line, (key, *cells) in _rows(header, [keys, *columns]):
        key = key.strip()
        if lacking := lacking_of(key, [cells[place] for place in places], keys, required, reading.missing):
            gaps.add([name for name, _ in lacking], lacking[0][1], line)
            continue
        keys_of_rows.append(names.setdefault(key, key))
        for column, cell in zip(columns, cells, strict=True):
            values.append(_value(cell, column, line, header.path, reading, levels))
    notes = notes_of_gaps(gaps, len(keys_of_rows), reading.missing, header.path)
    if not keys_of_rows:
        raise UsageError(f"expected rows below the header of {header.path}, got none; add data")
    if header.separator != ",":
        notes = [f"the cells of {header.path} are separated by {SEPARATORS[header.separator]}", *notes]
    numbers = np.frombuffer(values).reshape(len(keys_of_rows), -1)
    return Columns(keys_of_rows, numbers, {name: list(known) for name, known in levels.items()}, notes)


def text_columns(header: Header, columns: Sequence[str]) -> list[str]:
    """Return the columns of text: in most of their known cells the first character is a letter.

    The order of the rows has no effect. A column of numbers with a few cells of text is a column of numbers, whose text
    `read_columns` refuses.
    """
    surplus = [0] * len(columns)  # number of cells of text minus number of other known cells
    for _, cells in _rows(header, columns) if columns else ():
        for place, cell in enumerate(cells):
            surplus[place] += _kind(cell)
    return [name for name, number in zip(columns, surplus, strict=True) if number > 0]


def _kind(cell: str) -> int:
    """Return 1 for a cell that begins with a letter, 0 for a missing value, and -1 for any other cell."""
    text = cell.strip()
    if text[:1].isdigit():  # most cells, so first
        return -1
    if is_gap(text) or is_missing_code(text):
        return 0
    return 1 if text[0].isalpha() and text.lower() not in NOT_FINITE else -1


def _value(
    cell: str, name: str, line: int, path: Path, reading: Reading, levels: Mapping[str, dict[str, int]]
) -> float:
    if name in reading.optional and is_gap(cell):
        return math.nan
    if name not in levels:
        return _number(cell, name, reading, line, path)
    known, text = levels[name], cell.strip()
    if text not in known and reading.levels[name] is not None:
        raise UsageError(
            f"expected column '{name}' to hold a level of the training data ({', '.join(known)}), got '{text}' "
            f"on line {line} of {path}; train again with this level"
        )
    return float(known.setdefault(text, len(known)))


def _rows(header: Header, columns: Sequence[str | None]) -> Iterator[tuple[int, Cells]]:
    """Yield the line number and the cells of each row, in the given columns. A column None gives the cell "-"."""
    with utf8(header.path), header.path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True, delimiter=header.separator)
        next(lines, None)
        places = [None if name is None else header.names.index(name) for name in columns]
        for line in filter(any, complete_rows(lines, header.path)):
            _check_length(line, header, lines.line_num)
            yield lines.line_num, ["-" if place is None else line[place] for place in places]


def _check_length(line: Cells, header: Header, number: int) -> None:
    if len(line) != len(header.names):
        raise UsageError(
            f"expected {len(header.names)} cells as in the header, got {len(line)} on line {number} of {header.path}; "
            "put cells that contain the separator in quotes"
        )


def _number(cell: str, name: str, reading: Reading, line: int, path: Path) -> float:
    text = cell.replace(".", "?").replace(",", ".") if reading.decimal == "comma" else cell
    value = math.nan
    with suppress(ValueError):
        if text.isascii() and "_" not in text:  # float reads 1_000 as 1000
            value = float(text)
    if not math.isfinite(value):
        raise UsageError(
            f"expected a finite number in column '{name}', got '{cell}' on line {line} of {path}; "
            + _remedy(cell, name, reading)
        )
    return value


def _remedy(cell: str, name: str, reading: Reading) -> str:
    """Return what to do about a cell that is not a number."""
    if is_missing_code(cell):
        leave_out = " to predict it" if name in reading.optional else ", and set data.missing=drop to leave out the row"
        return f"fix the cell; if the value is missing, leave the cell empty{leave_out}"
    if any(sign.isdigit() for sign in cell):
        return "write 1234.5, without thousands separators or units; data.decimal=comma reads 1234,5"
    if name in reading.predictors:
        setting = f"data.factors=[{name}] (factor({name}) in data.formula)"
        return f"fix the cell, or code the column as text throughout; {setting} reads numbers as text too"
    return "fix the cell, or code a column of text as numbers"
