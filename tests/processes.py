"""Runs programs in forked Python processes, which need no seconds for imports.

`Forks` forks from a process that has imported torch alone, so a program itself imports Pyro and this package. `forked`
forks from the process of the tests, which has imported everything.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from multiprocessing.context import ForkProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from hydra.core.global_hydra import GlobalHydra

from pyro_metabayes import experiments
from tests.commands import ROOT, Outcome

# Answers each line of JSON by the exit code of the program in it; its output goes to two files.
SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)

def run(program, arguments):
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    job = json.loads(line)
    if not (child := os.fork()):
        os.chdir(job["folder"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = run(job["program"], job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Forks:
    """Runs programs, one at a time, with warnings as errors.

    server: the process that has imported torch.
    folder: where the output of the programs goes.
    """

    server: subprocess.Popen[str]
    folder: Path

    def run(self, program: str, *arguments: str, folder: Path = ROOT) -> Outcome:
        """Run `python -W error -c program arguments`, and return its output and exit code."""
        assert self.server.stdin is not None and self.server.stdout is not None
        files = {name: self.folder / name for name in ("stdout", "stderr")}
        job = {"program": program, "arguments": arguments, "folder": str(folder)}
        self.server.stdin.write(json.dumps(job | {name: str(file) for name, file in files.items()}) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Outcome(code, files["stdout"].read_text(), files["stderr"].read_text())

    def output_of(self, program: str, *arguments: str, folder: Path = ROOT) -> str:
        """The output of a program that must succeed."""
        outcome = self.run(program, *arguments, folder=folder)
        assert outcome.code == 0, outcome.err
        return outcome.out


@contextmanager
def forks_of_torch(folder: Path) -> Iterator[Forks]:
    """Context manager with the server."""
    pipe, environment = subprocess.PIPE, {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-W", "error", "-c", SERVER]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder) as server:
        yield Forks(server, folder)
        assert server.stdin is not None
        server.stdin.close()


@dataclass(frozen=True)
class ForkedCommand:
    """A command that `forked` has started."""

    process: ForkProcess
    stdout: IO[bytes]
    stderr: IO[bytes]

    @property
    def out(self) -> str:
        """The output so far."""
        return _written(self.stdout)

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.process.exitcode

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def finish(self, seconds: float = 60) -> Outcome:
        """Wait for the end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "timed out"
        return Outcome(self.process.exitcode, self.out, _written(self.stderr))


@contextmanager
def forked(name: str, *arguments: str, fork_workers: bool = False) -> Iterator[ForkedCommand]:
    """`python -m experiments.NAME arguments` in the current folder, for a test that sends signals to it.

    The process leads a new process group, as if a shell had started it.

    Args:
        name: the command.
        arguments: the arguments of the command.
        fork_workers: whether the workers of the command are forked too, for tests of anything but their start.
    """
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = ForkProcess(target=_run, args=(name, arguments, stdout, stderr, fork_workers))
        with warnings.catch_warnings(action="ignore"):  # of threads, from Python 3.12 on
            process.start()
        try:
            yield ForkedCommand(process, stdout, stderr)
        finally:
            process.kill()
            process.join()


def _run(
    name: str, arguments: tuple[str, ...], stdout: IO[bytes], stderr: IO[bytes], fork_workers: bool = False
) -> None:
    os.setsid()
    if fork_workers:
        fork = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
        os.register_at_fork(after_in_child=lambda: GlobalHydra.instance().clear())
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (TextIOWrapper(FileIO(number, "w"), write_through=True) for number in (1, 2))
    sys.argv = [f"experiments/{name}.py", *arguments]
    for number in experiments.STOP:  # as where the command is imported anew
        signal.signal(number, experiments._leave)
    GlobalHydra.instance().clear()
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def _written(file: IO[bytes]) -> str:
    """Read the file from its start. The processes share the position in the file."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()
