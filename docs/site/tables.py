"""python docs/site/tables.py [NAME RUNS TABLE.csv]: write the measured tables of the pages.

With arguments, TABLE.csv, which a command of the package wrote for the runs below the folder RUNS, is copied to
docs/tables/NAME.csv. The file docs/tables/NAME.json then says with which commit, on which machine and when the runs
were made. Everything between these marks is written anew:

    <!-- table NAME: guide; accuracy % as accuracy -->             a table of these columns
    <!-- table NAME where part=glyphs: guide; seeds -->            a table of the rows with this value
    <!-- table NAME where K=0|3|7: guide; K -->                    a table of the rows with one of these values
    <!-- table NAME: guide; mean of NLL as NLL -->                 0.53 of a cell "0.53 (0.51 to 0.55)"
    <!-- measured NAME -->                                         commit, date and machine of the runs
    <!-- end -->
    <!-- value NAME; ROW; COLUMN -->75.7 +- 0.5<!-- end -->        within a line: one cell, of the row with this label
    <!-- value NAME where part=glyphs; ROW; mean of NLL -->0.53<!-- end -->

So no measured number between marks is typed. tests/test_measured_tables.py compares the pages with docs/tables/.
"""

from __future__ import annotations

import csv
import datetime
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyro_metabayes.experiments.runs.tables import markdown_table

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs" / "tables"
MARKS = re.compile(
    r"<!-- (table|measured) ([\w-]+)(?: where ([^\n]*?)=([^\n]*?))?(?:: ([^\n]*?))? -->\n.*?<!-- end -->", re.DOTALL
)
VALUES = re.compile(
    r"(<!-- value ([\w-]+)(?: where ([^\n;]*?)=([^\n;]*?))?; ([^\n]*?); ([^\n]*?) -->)[^\n]*?(<!-- end -->)"
)
MEAN = "mean of "  # before the name of a column: its cells without the range of the seeds
OPENING = re.compile(r"^<!-- (?:table|measured) |<!-- value ", re.MULTILINE)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def take(name: str, runs: Path, table: Path) -> None:
    """Copy a table, and record commit, machine and date of its runs, which must share one commit and one machine."""
    results = {path: json.loads(path.read_text()) for path in sorted(runs.rglob("results.json"))}
    facts = {(str(each["commit"]), each["machine"]) for each in results.values()}
    if len(facts) != 1 or any(commit.endswith("-dirty") for commit, _ in facts):
        sys.exit(
            f"error: expected runs of one commit without local changes, on one machine, below {runs}, got "
            f"{sorted(facts)}; run them again"
        )
    (commit, machine), last = facts.pop(), max(path.stat().st_mtime for path in results)
    measured = {"commit": commit, "machine": machine, "date": datetime.date.fromtimestamp(last).isoformat()}
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{name}.csv").write_text(table.read_text())
    (TABLES / f"{name}.json").write_text(json.dumps(measured, indent=2) + "\n")


def written(page: str) -> str:
    """Return the page with all measured tables and values."""

    def block(match: re.Match[str]) -> str:
        kind, name, label, value, columns = match.groups()
        opening = match.group().partition("\n")[0]
        text = _measured(name) if kind == "measured" else _table(name, _rows_where(name, label, value), columns)
        return f"{opening}\n\n{text}\n\n<!-- end -->"

    def cell(match: re.Match[str]) -> str:
        opening, name, label, value, row_label, column, end = match.groups()
        rows = [row for row in _rows_where(name, label, value) if row_label in list(row.values())[:2]]
        if len(rows) != 1 or column.removeprefix(MEAN) not in rows[0]:
            sys.exit(f"error: expected one row '{row_label}' with a column '{column}' in docs/tables/{name}.csv")
        return f"{opening}{_cell(rows[0], column)}{end}"

    found = len(MARKS.findall(page)) + len(VALUES.findall(page))
    if found != (marks := len(OPENING.findall(page))):
        sys.exit(f"error: expected {marks} marks with a name and an end, got {found}; compare them with the docstring")
    if broken := re.search(r"^\s*<!-- value [^\n]*", page, re.MULTILINE):
        sys.exit(f"error: expected a word before a value in a line (Markdown), got: {broken.group().strip()}")
    return VALUES.sub(cell, MARKS.sub(block, page))


def _measured(name: str) -> str:
    facts = json.loads((TABLES / f"{name}.json").read_text())
    return f"Commit {facts['commit']}, {facts['date']}, {facts['machine']}."


def _rows(name: str) -> list[dict[str, str]]:
    path = TABLES / f"{name}.csv"
    if not path.exists():
        sys.exit(f"error: docs/tables has no {name}.csv; run: python docs/site/tables.py {name} RUNS TABLE.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _rows_where(name: str, label: str | None, values: str) -> list[dict[str, str]]:
    return [row for row in _rows(name) if label is None or row.get(label) in values.split("|")]


def _cell(row: Mapping[str, str], column: str) -> str:
    """The cell of a column; "mean of COLUMN" leaves out the range of the seeds."""
    cell = row[column.removeprefix(MEAN)]
    return cell.partition(" (")[0] if column.startswith(MEAN) else cell


def _table(name: str, rows: Sequence[Mapping[str, str]], columns: str | None) -> str:
    if columns is None:
        sys.exit(
            f"error: expected columns in the mark of the table {name}, got none; write <!-- table {name}: COLUMN -->"
        )
    if not rows:
        sys.exit(f"error: docs/tables/{name}.csv has no row that the mark names")
    titles = dict(_renamed(column) for column in columns.split(";"))
    if missing := {column.removeprefix(MEAN) for column in titles} - rows[0].keys():
        sys.exit(f"error: docs/tables/{name}.csv has no column '{missing.pop()}'; it has: {', '.join(rows[0])}")
    return markdown_table([{title: _cell(row, column) or "-" for column, title in titles.items()} for row in rows])


def _renamed(column: str) -> tuple[str, str]:
    """The name of a column in the file and on the page; " as guide" names the column without a title."""
    name, renamed, title = f" {column.strip()}".rpartition(" as ")
    return (name.strip(), title) if renamed else (title.strip(), title.strip())


def main(arguments: Sequence[str]) -> None:
    if len(arguments) == 3:
        name, runs, table = arguments
        take(name, Path(runs), Path(table))
    elif arguments:
        sys.exit(f"error: expected no argument, or NAME RUNS TABLE.csv, got {' '.join(arguments)}")
    for path in pages():
        page = path.read_text(encoding="utf-8")
        if (new := written(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
