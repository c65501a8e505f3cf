"""Rows of a table that lack a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyro_metabayes.errors import UsageError

GAPS = {"", "na", "n/a", "nan", "null", "none", "."}  # a missing number, as R, pandas, SQL and SAS write it


def is_gap(cell: str) -> bool:
    """Whether a cell says that a value is missing."""
    return cell.strip().lower() in GAPS


@dataclass
class Gaps:
    """Rows that lack a cell."""

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
    """The columns of a row without a value, and what stands there; unless gaps are dropped a group may be called NA."""
    lacking = [(str(keys), key)] if not key or (missing == "drop" and is_gap(key)) else []
    return lacking + [(name, cell) for name, cell in zip(numbers, cells, strict=True) if is_gap(cell)]


def notes_of_gaps(gaps: Gaps, complete: int, missing: str, path: Path) -> list[str]:
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
