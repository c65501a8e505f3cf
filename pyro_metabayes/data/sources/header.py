"""Reads the header of a CSV file and looks up columns by name."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.cache import data_file
from pyro_metabayes.storage.paths import user_path

Cells = Sequence[str]
Name = str | int | float | bool | None  # a column name as a command line or YAML parses it: 2015 is an integer

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class Header:
    """Header of a CSV file: the column names and the separator of the cells."""

    path: Path
    separator: str
    names: Cells

    def name_of(self, name: Name, setting: str) -> str:
        """Return the column with this name.

        Args:
            name: the name that the user gave.
            setting: where the user gave it, such as "data.group".

        Raises:
            UsageError: no column has that name, or several have it.
        """
        found = matching(name, self.names)
        if len(found) != 1:
            how_many = f"several ({', '.join(found)}; a name in quotes is exact)" if found else "none"
            raise UsageError(
                f"expected one column '{_text(name)}' in {self.path}, got {how_many}; there are: "
                f"{', '.join(self.names) or 'no header'}; fix {setting}"
            )
        return found[0]


def matching(name: Name, texts: Sequence[str]) -> list[str]:
    """Return the texts that equal the name. The number 2015 equals the text "2015"."""
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
    if name is None:
        return "null"
    return str(name).lower() if isinstance(name, bool) else str(name)


def header_of(path: Path, columns: Sequence[Name]) -> Header:
    """Read the header of a CSV file.

    The separator is the first one with which the header has all of these columns. If there is none, the separator that
    gives most columns is used.
    """
    if not path.is_file():
        raise UsageError(f"expected a CSV file, found none at {path}; fix data.path")
    headers = [Header(path, separator, _first_row(path, separator)) for separator in SEPARATORS]
    complete = [header for header in headers if all(matching(name, header.names) for name in columns)]
    return complete[0] if complete else max(headers, key=lambda header: len(header.names))


def _first_row(path: Path, separator: str) -> Cells:
    with utf8(path), suppress(csv.Error), path.open(newline="", encoding="utf-8-sig") as file:
        return [name.strip() for name in next(csv.reader(file, strict=True, delimiter=separator), [])]
    return []


@contextmanager
def utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"expected a CSV file in UTF-8 at {path}, got the error '{error}'; save the file again as CSV (UTF-8)"
        ) from None


def file_of(path: str, table: str) -> Path:
    """Return the file at `path` or, if `path` is empty, the file of a table in METABAYES_DATA/groups."""
    if path:
        return user_path(path)
    if not table:
        raise UsageError("expected a CSV file, got no path; set data.path=FILE.csv")
    return data_file(f"groups/{table}.csv", "put the CSV file there, or use data=groups data.path=FILE.csv")


class _Lines(Protocol):
    """Protocol of a csv.reader: iterable rows, and the number of the last line."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]:
        """Iterate over the rows."""


def complete_rows(lines: _Lines, path: Path) -> Iterator[Cells]:
    """Yield the rows of a CSV file.

    Raises:
        UsageError: a quote is not closed; the message names the line on which the row begins.
    """
    before = lines.line_num
    try:
        for line in lines:
            before = lines.line_num
            yield line
    except csv.Error as error:
        raise UsageError(
            f"expected cells with closed quotes in {path}, got the error '{error}' in the row that begins on line "
            f'{before + 1}; close the quotes there, and write a quote within a cell as ""'
        ) from None
