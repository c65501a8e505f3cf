"""python -m benchmarks [CASE ...] [--toy] [--out FILE.json]: cost of the library compared with raw PyTorch.

Most cases measure the CPU time of several variants in one process, on one thread. A round measures every variant once.
The table has medians and quartiles over rounds. A ratio is the ratio of two variants in the same round, so other load
on the machine makes it noisier but not biased. Long cases run only if they are named. They measure whole runs in
separate processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import pyro
import torch

from benchmarks import (
    compilation,
    conditional,
    evaluation,
    gradient,
    images,
    memory,
    prediction,
    processes,
    published,
    roofline,
    sampling,
    scale,
    sib,
    slopes,
    soak,
    start,
    transductive,
)
from benchmarks.guides import rows as guides
from benchmarks.measure import Row
from benchmarks.setting import Size
from pyro_metabayes.device import keep_freed_memory
from pyro_metabayes.experiments.cli.text_table import text_table

CASES = {
    "sib": sib.rows,
    "evaluation": evaluation.rows,
    "sampling": sampling.rows,
    "conditional": conditional.rows,
    "gradient": gradient.rows,
    "images": images.rows,
    "memory": memory.rows,
    "start": start.rows,
    "slopes": slopes.rows,
    "compiled": compilation.rows,
    "guides": guides.rows,
    "published": published.rows,
    "prediction": prediction.rows,
    "roofline": roofline.rows,
    "processes": processes.rows,
    "transductive": transductive.rows,
}
LONG = {
    "soak": soak.rows,
    "banks": scale.banks,
    "ways": scale.ways,
    "groups": scale.ragged,
}  # each takes minutes and runs in separate processes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    help_cases = f"one of {', '.join(CASES)} (default: all of these); long cases: {', '.join(LONG)}"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=help_cases)
    parser.add_argument(
        "--toy", action="store_true", help="one round of the smallest sizes, to test that the benchmarks run"
    )
    parser.add_argument("--out", type=Path, help="write the table as JSON, with the machine and the versions")
    options = parser.parse_args(arguments)
    cases = CASES | LONG
    if unknown := [name for name in options.cases if name not in cases]:
        parser.error(f"expected cases among {', '.join(cases)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as every command does
    with pyro.validation_enabled(False):  # as in training after the first step
        rows = [row for name in options.cases or CASES for row in cases[name](Size(options.toy))]
    print(text_table([text_row(row) for row in rows]))
    if options.toy:
        print("one round of the smallest sizes: the numbers are not measurements", file=sys.stderr)
    if options.out:
        write(options.out, rows)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON, with the machine and the versions."""
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    versions = {"torch": torch.__version__, "pyro": pyro.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine | versions | {"rows": [row.as_json() for row in rows]}, indent=1) + "\n")


def text_row(row: Row) -> dict[str, str]:
    ratio = "" if row.ratio is None else f"{row.ratio.median:.2f} ({row.ratio.lower:.2f} to {row.ratio.upper:.2f})"
    return {
        "case": row.case,
        "way": row.way,
        "ratio": ratio,
        "to": row.against,
        "goal": row.goal,
        "median": f"{row.value.median:.4g} {row.unit}",
        "quartiles": f"{row.value.lower:.4g} to {row.value.upper:.4g}",
    }


if __name__ == "__main__":
    main()
