"""Programs in a Python process of their own, forked from one that has imported torch and nothing of this package.

So a program finds everything of the package, and Pyro, not yet imported, without the seconds that torch takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
        """What `python -W error -c program arguments` leaves in `folder`."""
        assert self.server.stdin is not None and self.server.stdout is not None
        files = {name: self.folder / name for name in ("stdout", "stderr")}
        job = {"program": program, "arguments": arguments, "folder": str(folder)}
        self.server.stdin.write(json.dumps(job | {name: str(file) for name, file in files.items()}) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Outcome(code, files["stdout"].read_text(), files["stderr"].read_text())

    def output_of(self, program: str, *arguments: str, folder: Path = ROOT) -> str:
        """What a program prints that has to succeed."""
        outcome = self.run(program, *arguments, folder=folder)
        assert outcome.code == 0, outcome.err
        return outcome.out


@contextmanager
def forks_of_torch(folder: Path) -> Iterator[Forks]:
    """The server, until the end of the context."""
    pipe, environment = subprocess.PIPE, {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-W", "error", "-c", SERVER]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder) as server:
        yield Forks(server, folder)
        assert server.stdin is not None
        server.stdin.close()
