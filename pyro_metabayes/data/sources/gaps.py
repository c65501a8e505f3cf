"""Finds rows of a table with missing values, and reports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyro_metabayes.errors import UsageError

GAPS = {"", "na", "n/a", "nan", "null", "none", "."}  # how R, pandas, SQL and SAS write a missing number

MISSING_CODES = {"n.a.", "n.a", "na.", "n/d", "n.d.", "<na>", "#n/a", "#na", "nil", "missing", "unknown"}  # not read


def is_gap(cell: str) -> bool:
    """Return whether the text of a cell stands for a missing value."""
    return cell.strip().lower() in GAPS


def is_missing_code(cell: str) -> bool:
    """Return whether a cell probably stands for a missing value, but may also be a name: such as n.a., - or ?."""
    text = cell.strip().lower()
    return text in MISSING_CODES or not any(sign.isalnum() for sign in text)


@dataclass
class Gaps:
    """Counts of the missing values of a table.

    Attributes:
        columns: number of missing values of each column.
        rows: number of rows with missing values.
        first: description of the first missing value, for messages.
    """

    columns: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    first: str = ""

    def add(self, columns: Sequence[str], cell: str, line: int) -> None:
        self.columns.update(columns)
        self.rows += 1
        self.first = self.first or f"'{cell}' in column '{columns[0]}' on line {line}"


def lacking_of(
    key: str, cells: Sequence[str], keys: str | None, numbers: Sequence[str], missing: str
) -> list[tuple[str, str]]:
    """Return names and cells of the columns in which a row has no value.

    Args:
        key: the name of the group. An empty name is a missing value. With missing="drop", so are NA and null.
        cells: the other cells of the row.
        keys: name of the column of groups.
        numbers: names of the columns of the other cells.
        missing: "refuse" or "drop".
    """
    lacking = [(str(keys), key)] if not key or (missing == "drop" and is_gap(key)) else []
    return lacking + [(name, cell) for name, cell in zip(numbers, cells, strict=True) if is_gap(cell)]


def notes_of_gaps(gaps: Gaps, complete: int, missing: str, path: Path) -> list[str]:
    if not gaps.rows:
        return []
    how_many = f"{gaps.rows} of {gaps.rows + complete} rows of {path}"
    if missing == "refuse":
        raise UsageError(
            f"expected a value in every cell, got missing values in {how_many} (the first is {gaps.first}); fill "
            "in values, or set data.missing=drop to leave these rows out"
        )
    columns = ", ".join(f"{count} in column '{name}'" for name, count in gaps.columns.items())
    return [f"left out {how_many}, which have missing values: {columns}"]
