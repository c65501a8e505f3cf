"""Tables of experiments.transductive, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pyro_metabayes.diagnostics.calibration import reliability
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.tables import markdown_table, per_cent
from pyro_metabayes.experiments.transductive.cells import Cell
from pyro_metabayes.experiments.transductive.choices import Choice
from pyro_metabayes.experiments.transductive.differences import Difference, to_best
from pyro_metabayes.experiments.transductive.methods import Method

Cells = Mapping[str, Mapping[str, Cell]]  # scores by method, then column
TableRow = dict[str, str]
ECE_COLUMNS = ("1-shot", "5-shot", "1-shot, Dirichlet(2)", "5-shot, Dirichlet(2)")
ONE_STEP = ("class_means", "soft_kmeans, one step", "soft_kmeans", "sib", "amortized_em")


def section_of(
    bank: str, title: str, methods: Sequence[Method], cells: Cells, choices: Mapping[str, Choice], marginals: str
) -> str:
    """Return the section of a bank (data set) in Markdown.

    The tables are the scores of methods that assume balanced queries, the scores of other methods, differences from the
    best peer, calibration and cost, and the chosen settings.
    """
    known = [method for method in methods if method.known]
    unknown = [method for method in methods if not method.known]
    parts = [
        f"## {bank}\n\n{title}",
        "Methods that assume balanced queries: accuracy, per cent, and NLL, nats per query.",
        markdown_table([_both(method.name, cells[method.name]) for method in known]),
        "Methods without a known class marginal: accuracy, per cent.",
        markdown_table([_accuracies(method.name, cells[method.name]) for method in unknown]),
        "Methods without a known class marginal: NLL, nats per query.",
        markdown_table([_nlls(method.name, cells[method.name]) for method in unknown]),
        "Our method minus the best peer in the column, on the same tasks, with 95% intervals over tasks; in brackets "
        "the range over training runs.",
        markdown_table(difference_rows(methods, cells)),
        "Expected calibration error, and CPU time of a 5-way 1-shot task.",
        markdown_table([_calibration(method.name, cells[method.name]) for method in methods]),
        "Settings and temperatures, chosen on validation classes:",
        "\n".join(_settings(method, choices[method.name]) for method in methods),
        f"Shares of the classes among the queries, from the most to the least frequent, mean over tasks: {marginals}.",
    ]
    return "\n\n".join(parts)


def _interval(values: np.ndarray, digits: int, factor: float = 1.0) -> str:
    return f"{factor * values.mean():.{digits}f} +- {factor * ci95_of(values):.{digits}f}"


def _accuracies(name: str, cells: Mapping[str, Cell]) -> TableRow:
    return {"method": name, **{column: _interval(cell.accuracy, 1, 100) for column, cell in cells.items()}}


def _nlls(name: str, cells: Mapping[str, Cell]) -> TableRow:
    return {"method": name, **{column: _interval(cell.nll, 3) for column, cell in cells.items()}}


def _both(name: str, cells: Mapping[str, Cell]) -> TableRow:
    accuracies, nlls = _accuracies("", cells), _nlls("", cells)
    nlls = {f"{column}, NLL": text for column, text in nlls.items() if column != "method"}
    return accuracies | nlls | {"method": name}


def _calibration(name: str, cells: Mapping[str, Cell]) -> TableRow:
    row = {column: f"{_ece(cells[column]):.3f}" if column in cells else "-" for column in ECE_COLUMNS}
    first = next(iter(cells.values()))
    return {"method": name, **row, "ms per task": f"{float(first.milliseconds):.1f}", "tasks": str(len(first.nll))}


def _ece(cell: Cell) -> float:
    return float(reliability(torch.from_numpy(cell.bins)).ece.mean)


def _settings(method: Method, choice: Choice) -> str:
    """Format the chosen settings of a method as an item of a Markdown list."""
    changes = [f"`guide.{name}={value}`" for name, value in method.changes.items()]
    settings = f"`{choice.candidate}`" if choice.candidate else ", ".join(["trained as below", *changes])
    more = f"; from 5 shots also `{method.many}`" if method.many else ""
    temperature = f"; temperature {choice.temperature:.2f}" if method.tempered else ""
    return f"- {method.name}: {settings}{more}{temperature}"


Pair = tuple[str, str, Difference, Difference]  # method, column, and differences of accuracy and NLL


def pairs_of(methods: Sequence[Method], cells: Cells) -> list[Pair]:
    """Compare each of our methods with the best peer, in each column (kind of tasks).

    Peers are methods that make the same assumption about the class marginal of the queries.
    """
    found = []
    for own in (method for method in methods if method.ours):
        peers = [method.name for method in methods if method.peer and not method.ours and method.known == own.known]
        for column, cell in cells[own.name].items():
            others = {name: cells[name][column] for name in peers}
            found.append((own.name, column, to_best(cell, others, "accuracy"), to_best(cell, others, "nll")))
    return found


def difference_rows(methods: Sequence[Method], cells: Cells) -> list[TableRow]:
    return [
        {
            "method": name,
            "column": column,
            "best peer, accuracy": accuracy.peer,
            "points": _shown(accuracy, 1),
            "best peer, NLL": nll.peer,
            "nats": _shown(nll, 3),
            "best or level": _verdict(accuracy, nll),
        }
        for name, column, accuracy, nll in pairs_of(methods, cells)
    ]


def _shown(difference: Difference, digits: int) -> str:
    low, high = difference.seeds
    spread = "" if low == high else f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"{difference.mean:+.{digits}f} +- {difference.ci95:.{digits}f}{spread}"


def _verdict(accuracy: Difference, nll: Difference) -> str:
    names = {"accuracy": accuracy.level_in_accuracy(), "NLL": nll.level_in_nll()}
    return ", ".join(name for name, level in names.items() if level) or "neither"


def count_rows(banks: Mapping[str, Cells], methods: Sequence[Method]) -> list[TableRow]:
    """Count the kinds of tasks in which our methods are better than the best peer or level with it.

    Accuracy and NLL are counted separately.

    Returns:
        A table with one row per bank (data set) and method of ours.
    """
    rows = []
    for bank, cells in banks.items():
        pairs = pairs_of(methods, cells)
        for name in dict.fromkeys(pair[0] for pair in pairs):
            own = [pair for pair in pairs if pair[0] == name]
            rows.append(
                {
                    "bank": bank,
                    "method": name,
                    "columns": str(len(own)),
                    "accuracy best or level": str(sum(accuracy.level_in_accuracy() for _, _, accuracy, _ in own)),
                    "NLL best or level": str(sum(nll.level_in_nll() for *_, nll in own)),
                }
            )
    return rows


def query_rows(banks: Mapping[str, Cells], column: str) -> list[TableRow]:
    """Return a table of accuracies on one kind of tasks, with one row per bank (data set).

    The first column has class means. The other columns have guides that use the queries. The increase along a row is
    the effect of the queries.
    """
    return [
        {"bank": bank, **{name: per_cent(float(cells[name][column].accuracy.mean())) for name in ONE_STEP}}
        for bank, cells in banks.items()
    ]
