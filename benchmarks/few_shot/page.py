"""python -m benchmarks.few_shot.page RESULTS.json PAGE.md: write the results of a comparison into a page.

The tables replace the text between the lines MARK and END of the page. With TABLE.csv in place of the page, the results
are written as one table with intervals, for docs/site/tables.py.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.few_shot.tables import Result, cell_of, page_of, row_of

MARK, END = "<!-- benchmarks.few_shot -->", "<!-- end -->"


def with_tables(page: str, tables: str) -> str:
    """Return the page with the tables between the lines MARK and END."""
    before, _, rest = page.partition(MARK)
    return f"{before}{MARK}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write one row per bank, cell and method."""
    rows = [{"task": f"{result['bank']}, {cell_of(result)}"} | row_of(result) for result in results]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_shot.page", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a file that --out of the comparison has written")
    parser.add_argument("page", type=Path, help=f"a page with the lines {MARK} and {END}, or a .csv file")
    options = parser.parse_args(arguments)
    cells = json.loads(options.results.read_text())["results"]
    results = [result for cell in cells for result in cell] if cells and isinstance(cells[0], list) else cells
    if options.page.suffix == ".csv":
        write_csv(options.page, results)
        return
    methods = list(dict.fromkeys(result["method"] for result in results))
    options.page.write_text(with_tables(options.page.read_text(), page_of(results, methods)))


if __name__ == "__main__":
    main()
