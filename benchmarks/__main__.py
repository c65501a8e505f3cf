"""python -m benchmarks [CASE ...] [--toy] [--out FILE.json]: what the library costs, against what it could cost.

Every case measures its variants in turn, in one process, on one thread, in CPU time; the table has medians with
quartiles, and ratios that are paired within the rounds. Other work on the machine makes times longer and ratios
noisier, not different. Long cases run only where they are named: they watch whole runs, in processes of their own.
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
    sampling,
    scale,
    sib,
    slopes,
    soak,
    start,
)
from benchmarks.measure import Row
from benchmarks.setting import Size
from pyro_metabayes.experiments.runs.tables import text_table
from pyro_metabayes.training.allocator import keep_freed_memory

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
}
LONG = {
    "soak": soak.rows,
    "banks": scale.banks,
    "ways": scale.ways,
    "groups": scale.ragged,
}  # minutes each, in processes of their own


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    of_cases = f"of {', '.join(CASES)}: all unless given; or long ones, of {', '.join(LONG)}"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=of_cases)
    parser.add_argument("--toy", action="store_true", help="one round of the smallest sizes: its numbers mean nothing")
    parser.add_argument("--out", type=Path, help="write the table as JSON, with the machine and the versions")
    given = parser.parse_args(arguments)
    known = CASES | LONG
    if unknown := [name for name in given.cases if name not in known]:
        parser.error(f"expected cases of {', '.join(known)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as every command does
    with pyro.validation_enabled(False):  # as in training after the first step
        rows = [row for name in given.cases or CASES for row in known[name](Size(given.toy))]
    print(text_table([shown(row) for row in rows]))
    if given.toy:
        print("one round of the smallest sizes: that they run is all that these numbers say", file=sys.stderr)
    if given.out:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        versions = {"torch": torch.__version__, "pyro": pyro.__version__}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(
            json.dumps(machine | versions | {"rows": [row.as_json() for row in rows]}, indent=1) + "\n"
        )


def shown(row: Row) -> dict[str, str]:
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
