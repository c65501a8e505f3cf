"""Case `start`: CPU time of a cold start: imports, --help, an error of the settings, the first line of a run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size

CASE = "cold start"
TORCH = "import torch"
METABAYES = ["-m", "pyro_metabayes.experiments"]
RUN = [*METABAYES, "run", "guide=sib"]
COMMANDS = {
    TORCH: ["-c", "import torch"],
    "import torch, pyro": ["-c", "import torch, pyro"],
    "import pyro_metabayes": ["-c", "import pyro_metabayes"],
    "MetaLearner": ["-c", "from pyro_metabayes import MetaLearner"],
    "metabayes --help": [*METABAYES, "--help"],
    "metabayes run --help": [*METABAYES, "run", "--help"],
    "error of the settings": [*RUN, "train.stepz=4"],
    "first line of a run": [*RUN, "data=gaussian_features"],
}
FIRST_LINE = "first line of a run"
GOALS = {"metabayes --help": 0.2, "import pyro_metabayes": 0.2}
BEYOND_TORCH = {"MetaLearner": 1.5, "metabayes run --help": 1.5, "error of the settings": 1.5, FIRST_LINE: 2.0}


def rows(size: Size) -> list[Row]:
    rounds = [{way: seconds(way) for way in COMMANDS} for _ in range(size.rounds(7))]
    table = []
    for way in COMMANDS:
        goal = f"<= {GOALS[way]} s" if way in GOALS else ""
        table.append(Row(CASE, way, Spread.of([by_way[way] for by_way in rounds]), "s", goal=goal))
    for way, most in BEYOND_TORCH.items():
        added = Spread.of([by_way[way] - by_way[TORCH] for by_way in rounds])
        table.append(Row(CASE, f"{way}, beyond {TORCH}", added, "s", goal=f"<= {most} s"))
    return table


def seconds(way: str) -> float:
    """Measure the CPU seconds (user and system) of a Python process; those of a run until its first line."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[way]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )
        assert process.stdout is not None
        if way == FIRST_LINE:
            assert process.stdout.readline().startswith(b"training"), "expected the first line of a run"
            process.kill()
        process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
