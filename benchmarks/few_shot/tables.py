"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.few_shot.tasks import Cell
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.tables import markdown_table

Result = dict[str, Any]
# A method is worse in a cell if its paired interval of accuracy lies below POINTS, or that of the NLL above NATS.
POINTS, NATS = -0.003, 0.01
COLUMNS = 4  # largest number of banks in one table of a page


def table_of(results: Sequence[Result]) -> str:
    """Return the table of the methods for one bank and cell, with differences to the first method."""
    return f"{results[0]['bank']}, {cell_of(results[0])}\n{text_table([row_of(result) for result in results])}"


def row_of(result: Result) -> dict[str, str]:
    """Format the scores of a method with 95% intervals. Differences are to the first method of the comparison."""
    return {
        "method": result["method"],
        "accuracy": interval(result["accuracy"], 1, 100),
        "NLL": interval(result["nll"], 3),
        "ECE": interval(result["ece"], 3),
        "accuracy, difference": interval(result["accuracy_difference"], 1, 100),
        "NLL, difference": interval(result["nll_difference"], 3),
        "ms per task": f"{result['milliseconds']:.2f}",
    }


def page_of(results: Sequence[Result], methods: Sequence[str]) -> str:
    """Return Markdown tables of accuracy (per cent) and NLL (nats) by method and bank, at most 4 banks per table."""
    parts = []
    for cell in dict.fromkeys(map(cell_of, results)):
        here = {(result["bank"], result["method"]): result for result in results if cell_of(result) == cell}
        banks = list(dict.fromkeys(bank for bank, _ in here))
        parts.append(str(cell))
        for start in range(0, len(banks), COLUMNS):
            rows = [
                {"method": name}
                | {bank: _short(here[bank, name]) for bank in banks[start : start + COLUMNS] if (bank, name) in here}
                for name in methods
            ]
            parts.append(markdown_table(rows))
    return "\n\n".join(parts)


def _short(result: Result) -> str:
    return f"{100 * result['accuracy']['mean']:.1f}, {result['nll']['mean']:.3f}"


def interval(value: dict[str, float], digits: int, factor: float = 1.0) -> str:
    """Format a mean and the half width of its 95% interval, multiplied by `factor`."""
    return f"{factor * value['mean']:.{digits}f} +- {factor * value['ci95']:.{digits}f}"


def cell_of(result: Result) -> Cell:
    return Cell(result["way"], result["shot"], result["marginal"])


def less_accurate(result: Result) -> bool:
    """Return whether the paired interval of the accuracy lies wholly below -0.3 percentage points."""
    difference = result["accuracy_difference"]
    return difference["mean"] + difference["ci95"] < POINTS


def less_likely(result: Result) -> bool:
    """Return whether the paired interval of the negative log-likelihood lies wholly above +0.01 nats."""
    difference = result["nll_difference"]
    return difference["mean"] - difference["ci95"] > NATS


def summary_of(results: Sequence[Result]) -> str:
    """Return a table by bank and method: number of cells in which the method is worse, and mean differences.

    Differences are to the first method of the comparison.
    """
    rows = []
    for bank in dict.fromkeys(result["bank"] for result in results):
        for method in dict.fromkeys(result["method"] for result in results):
            cells = [result for result in results if (result["bank"], result["method"]) == (bank, method)]
            if cells:
                rows.append({"bank": bank, "method": method, **_counts(cells)})
    return text_table(rows)


def _counts(cells: Sequence[Result]) -> dict[str, str]:
    accuracy, nll = (
        sum(result[name]["mean"] for result in cells) / len(cells) for name in ("accuracy_difference", "nll_difference")
    )
    return {
        "cells": str(len(cells)),
        "below -0.3 points": str(sum(map(less_accurate, cells))),
        "above +0.01 nats": str(sum(map(less_likely, cells))),
        "mean accuracy, difference": f"{100 * accuracy:+.2f}",
        "mean NLL, difference": f"{nll:+.3f}",
    }


def grid_of(results: Sequence[Result], bank: str, method: str) -> str:
    """Return a table of the differences of accuracy (points) and NLL (nats) of one method, by cell.

    ! marks a difference by which the method is worse.
    """
    cells = {cell_of(result): result for result in results if (result["bank"], result["method"]) == (bank, method)}
    rows = []
    for way, marginal in dict.fromkeys((cell.way, cell.marginal) for cell in cells):
        shots = {cell.shot: _difference(cells[cell]) for cell in cells if (cell.way, cell.marginal) == (way, marginal)}
        rows.append({"task": f"{way}-way, {marginal}", **{f"{shot}-shot": text for shot, text in shots.items()}})
    return f"{bank}: {method}, differences\n{text_table(rows)}"


def _difference(result: Result) -> str:
    accuracy, nll = 100 * result["accuracy_difference"]["mean"], result["nll_difference"]["mean"]
    return f"{accuracy:+.1f}{'!' * less_accurate(result)} / {nll:+.3f}{'!' * less_likely(result)}"
