"""Verdicts on the prior in tables: collapsed or alive, and the information that they are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSE = {True: "collapsed", False: "alive", None: "-"}


def with_information(verdict: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Format a verdict on the prior with the mutual information of labels and weights, such as "collapsed, 0.046".

    Args:
        verdict: the verdict, such as "alive".
        results: the runs of the verdict. For several runs the range of the information is given, in nats per task.
    """
    found = (run.get("prior_information") for run in results)  # absent in results of version 0.1
    values = [float(value) for value in found if value is not None]
    if len(values) < len(results):
        return verdict
    bounds = [f"{value:.{3 if value < 1 else 1}f}" for value in (min(values), max(values))]
    return f"{verdict}, {' to '.join(dict.fromkeys(bounds))}"


def without_information(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the rows of table.csv: in the column "prior" the verdict alone, without the information."""
    return [{name: cell.partition(",")[0] if name == "prior" else cell for name, cell in row.items()} for row in rows]
