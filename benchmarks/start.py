"""Case 8: CPU time of a cold start, for the imports and for --help."""

from __future__ import annotations

import resource
import subprocess
import sys

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size

CASE = "cold start"
COMMANDS = {
    "import torch, pyro": ["-c", "import torch, pyro"],
    "import pyro_metabayes": ["-c", "import torch, pyro, pyro_metabayes"],
    "experiments.run --help": ["-m", "experiments.run", "--help"],
}


def rows(size: Size) -> list[Row]:
    rounds = [{way: seconds(command) for way, command in COMMANDS.items()} for _ in range(size.rounds(7))]
    table = [Row(CASE, way, Spread.of([by_command[way] for by_command in rounds]), "s") for way in COMMANDS]
    added = [by_command["import pyro_metabayes"] - by_command["import torch, pyro"] for by_command in rounds]
    return [*table, Row(CASE, "pyro_metabayes adds", Spread.of(added), "s", goal="<= 0.3 s")]


def seconds(command: list[str]) -> float:
    """User and system CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
