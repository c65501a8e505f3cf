"""python -m benchmarks.few_shot [--grid]: few-shot classifiers on banks of embeddings that no learner has seen.

Prints accuracy (per cent), negative log-likelihood (nats per query) and expected calibration error of every method, and
differences to class means with a fitted temperature on the same tasks, with 95% intervals. A cell is a way, shot and
class marginal. With --grid: all cells of two banks, and in how many cells a method is worse than class means.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pyro
import torch

from benchmarks.few_shot.banks import SIMULATED, TEST
from benchmarks.few_shot.compare import Comparison
from benchmarks.few_shot.peers import PEERS
from benchmarks.few_shot.rows import Checkpoint, Classifier, Function, Method
from benchmarks.few_shot.tables import Result, grid_of, summary_of, table_of
from benchmarks.few_shot.tasks import Cell, has_tasks
from benchmarks.few_shot.tuning import Tuning
from pyro_metabayes.errors import UsageError

GRID_BANKS = ("cifar100_lite0", "docstrings_minilm")
CELLS = tuple(Cell(5, shot, marginal) for marginal, shot in product(("balanced", "dirichlet2"), (1, 5)))
WAYS, SHOTS, GRID_MARGINALS, ABSENT_FROM = (2, 5, 10, 20), (1, 2, 5, 10, 20), ("balanced", "dirichlet1", "absent"), 5
TOY_METHODS = ("class_means", "logistic_regression", "pt_map")
REFERENCE = "class_means"


def grid_cells() -> tuple[Cell, ...]:
    """Return the cells of the grid. Only tasks with at least ABSENT_FROM classes have the marginal `absent`."""
    cells = (Cell(way, shot, marginal) for way, marginal, shot in product(WAYS, GRID_MARGINALS, SHOTS))
    return tuple(cell for cell in cells if cell.marginal != "absent" or cell.way >= ABSENT_FROM)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(1)
    try:
        added = _added(options)
        names = options.methods or (TOY_METHODS if options.toy else tuple(PEERS))
        methods: list[Method] = [PEERS[REFERENCE], *(PEERS[name] for name in names if name != REFERENCE), *added]
        results: list[Result] = []
        for found in _results(options, methods):
            results += found
            if options.out:
                _write(options.out, results, options)  # after each cell, so that an interrupted run keeps them
    except UsageError as error:
        sys.exit(f"error: {error}")
    if options.grid:
        _print_grid(results, [method.name for method in added])
    if options.toy:
        print("a simulated bank and two tasks per cell: the numbers are not measurements", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_shot", description=__doc__.splitlines()[0])
    parser.add_argument("--grid", action="store_true", help="all ways, shots and class marginals")
    choices = [*TEST, *SIMULATED]
    parser.add_argument("--banks", nargs="+", choices=choices, metavar="BANK", help=f"among {', '.join(choices)}")
    parser.add_argument("--methods", nargs="*", choices=list(PEERS), metavar="METHOD", help=f"among {', '.join(PEERS)}")
    parser.add_argument("--learner", action="append", default=[], metavar="FILE[,guide.SETTING=VALUE,...]")
    parser.add_argument("--classifier", action="append", default=[], metavar="[ARGUMENT=VALUE,...]")
    parser.add_argument("--function", action="append", default=[], metavar="MODULE:NAME")
    parser.add_argument("--tasks", type=int, help="tasks per bank and cell; default: 300")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tasks")
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    parser.add_argument("--toy", action="store_true", help="two tasks of a simulated bank, to test that it runs")
    return parser.parse_args(arguments)


def _added(options: argparse.Namespace) -> list[Method]:
    """Return the methods that --learner, --classifier and --function name."""
    return [
        *map(Checkpoint.parse, options.learner),
        *map(Classifier.parse, options.classifier),
        *map(Function.parse, options.function),
    ]


def _results(options: argparse.Namespace, methods: Sequence[Method]) -> Iterator[list[Result]]:
    """Print and yield the results of each bank and cell."""
    toy = ("simulated",)
    tuning = Tuning(toy, tasks=2) if options.toy else Tuning()
    comparison = Comparison(methods, options.tasks or (2 if options.toy else 300), options.seed, tuning)
    banks = options.banks or (toy if options.toy else GRID_BANKS if options.grid else tuple(TEST))
    for bank, cell in product(banks, grid_cells() if options.grid else CELLS):
        if not has_tasks(bank, cell):
            print(f"{bank}: too few classes or inputs for {cell}", file=sys.stderr)
            continue
        results = comparison.results(bank, cell)
        print(f"{bank}, {cell}" if options.grid else f"{table_of(results)}\n", flush=True)
        yield results


def _print_grid(results: Sequence[Result], added: Sequence[str]) -> None:
    for bank, method in product(dict.fromkeys(result["bank"] for result in results), added):
        print(f"\n{grid_of(results, bank, method)}")
    print(f"\n{summary_of(results)}")


def _write(path: Path, results: Sequence[Result], options: argparse.Namespace) -> None:
    """Write the results as JSON, with the machine, the versions and the seed."""
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    versions = {"torch": torch.__version__, "pyro": pyro.__version__, "seed": options.seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine | versions | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
