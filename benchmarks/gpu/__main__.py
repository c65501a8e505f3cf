"""python -m benchmarks.gpu [--device cuda] [--minutes 8] [--toy]: checks and speed of the library on a GPU.

Checks that every guide trains without synchronising with the host, and that its loss equals that on the CPU. Measures
tasks, steps and images per second, and peak memory. A failed row states the reason; the other rows still run. The exit
code is 1 if the check of a guide or of a loss has failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks.gpu import compilation, graphs, guides, images, rates, same_loss
from benchmarks.gpu.budget import deadlines
from benchmarks.gpu.device import description, device_named
from benchmarks.gpu.result import FAILED, Result, Run
from pyro_metabayes.device import keep_freed_memory
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.text_table import text_table

SECTIONS: dict[str, tuple[Callable[[Run], Iterator[list[Result]]], float]] = {  # rows, share of the time
    "guides": (guides.rows, 0.25),
    "loss": (same_loss.rows, 0.1),
    "tasks": (rates.rows, 0.25),
    "images": (images.rows, 0.2),
    "compiled": (compilation.rows, 0.15),
    "graphs": (graphs.rows, 0.05),  # last: a failed capture may leave the device in an undefined state
}
CHECKS = ("guides", "loss")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        device = device_named(options.device or ("cpu" if options.toy else "cuda"))
    except UsageError as error:
        sys.exit(f"error: {error}")
    keep_freed_memory()  # as every command does
    machine, results = description(device), []
    for name, rows in _sections(device, options.toy, options.minutes):
        results += rows
        print(f"{name}: {len(rows)} rows", file=sys.stderr)
        _write(options.out, machine, results)  # after each section, so that results survive a lost machine
    _report(machine, results, options.toy)
    if any(row.status == FAILED and row.section in CHECKS for row in results):
        sys.exit(1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", help="cuda (the first visible device), cpu, xpu or mps; default: cuda, with --toy cpu"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time budget; rows beyond it are not run")
    parser.add_argument(
        "--toy", action="store_true", help="one round of the smallest sizes, to test that the benchmarks run"
    )
    parser.add_argument("--out", type=Path, help="JSON file; default: runs/bench-gpu.json, with --toy none")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < float("inf"):
        parser.error(f"expected --minutes > 0, got {options.minutes}")
    options.out = options.out or (None if options.toy else Path("runs/bench-gpu.json"))
    return options


def _sections(device: torch.device, toy: bool, minutes: float) -> Iterator[tuple[str, list[Result]]]:
    ends = deadlines(minutes, {name: share for name, (_, share) in SECTIONS.items()})
    for name, (rows, _) in SECTIONS.items():
        torch.manual_seed(0)
        with pyro.validation_enabled(False):  # as in training after the first step
            measured = [row for several in rows(Run(device, toy, ends[name])) for row in several]
        yield name, [replace(row, section=name) for row in measured]


def _write(path: Path | None, machine: dict[str, Any], results: list[Result]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(machine | {"rows": [row.as_json() for row in results]}, indent=1) + "\n")


def _report(machine: dict[str, Any], results: list[Result], toy: bool) -> None:
    """Print the device, the table, and the reason of each failure."""
    titles = ("name", "capability", "driver", "cuda", "commit", "date")
    print(", ".join(f"{name} {machine[name]}" for name in titles if machine[name] is not None))
    print(text_table([row.cells() for row in results]))
    for row in results:
        if row.status == FAILED:
            print(f"failed: {row.section}, {row.case}, {row.way}: {row.note}")
    if toy:
        print("one round of the smallest sizes: the numbers are not measurements", file=sys.stderr)


if __name__ == "__main__":
    main()
