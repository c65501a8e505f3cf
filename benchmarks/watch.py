"""Runs a training in a separate process, and reads the memory of the process from the Linux kernel during the run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY = 0.2  # seconds between observations
MEGABYTE = 1e6


@dataclass(frozen=True)
class Look:
    """One observation of a process.

    step: training step.
    own: anonymous memory in bytes, according to the kernel.
    mapped: pages of files in bytes, according to the kernel.
    cpu: CPU seconds.
    in_use: bytes that malloc has allocated and not freed.
    blocks: value of sys.getallocatedblocks().
    """

    step: int
    own: int
    mapped: int
    cpu: float
    in_use: int
    blocks: int


@dataclass(frozen=True)
class WatchedRun:
    """A finished run: observations in order of time, the lines of metrics.jsonl, and results.json."""

    looks: Sequence[Look]
    lines: Sequence[dict[str, Any]]
    results: dict[str, Any]

    @property
    def most(self) -> float:
        """Peak anonymous memory in MB, without pages of files, which the kernel may drop."""
        return max(look.own for look in self.looks) / MEGABYTE

    @property
    def most_mapped(self) -> float:
        return max(look.mapped for look in self.looks) / MEGABYTE

    @property
    def step_milliseconds(self) -> float:
        """CPU time per step between the first and the penultimate logged line, which excludes a final validation."""
        first, last = (self._first_look(self.lines[place]["step"]) for place in (0, -2))
        return 1e3 * (last.cpu - first.cpu) / (last.step - first.step) if last.step > first.step else math.nan

    def _first_look(self, step: int) -> Look:
        return next(look for look in self.looks if look.step >= step)


def watch_run(*arguments: str) -> WatchedRun:
    """Run `python -m experiments.run ARGUMENTS` and observe it.

    Raises:
        RuntimeError: the run has failed; the message holds its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        run, counts = Path(folder) / "run", Path(folder) / "counts"
        command = [sys.executable, "-m", "benchmarks.counted", str(counts), *arguments, f"hydra.run.dir={run}"]
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            looks = []
            while process.poll() is None:
                if (look := _look(process.pid, run / "metrics.jsonl", counts)) is not None:
                    looks.append(look)
                time.sleep(EVERY)
            output.seek(0)
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}: {output.read()}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return WatchedRun(looks, lines, json.loads((run / "results.json").read_text()))


def _look(process: int, metrics: Path, counts: Path) -> Look | None:
    try:
        in_use, blocks = map(int, counts.read_text().split())
        status = Path(f"/proc/{process}/status").read_text()
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):  # the process has just started or ended
        return None
    kilobytes = {name: int(size) for name, size in re.findall(r"^Rss(Anon|File):\s+(\d+) kB", status, re.MULTILINE)}
    if not kilobytes:  # an ended process without a wait() has no memory
        return None
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Look(_last_step(metrics), 1024 * kilobytes["Anon"], 1024 * kilobytes["File"], cpu, in_use, blocks)


def _last_step(metrics: Path) -> int:
    """Return the step of the last complete line of metrics.jsonl; 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 8192))
            steps = re.findall(rb'"step": (\d+),.*\n', file.read())
    except OSError:
        return 0
    return int(steps[-1]) if steps else 0
