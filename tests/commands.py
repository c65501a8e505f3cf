"""Calls `python -m experiments.NAME` as a shell does, in this process or in a new process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from torch import Tensor

from pyro_metabayes.experiments.cli import text_table
from pyro_metabayes.experiments.cli.composition import beside_command

ROOT = Path(__file__).parent.parent
CELLS = re.compile(r"\S  +\S")  # two cells of a table beside each other
CLASSES, ROWS, WIDTH = 30, 20, 16
SMALL = ("train.steps=2", "eval.tasks=8", "train.validation_tasks=8")  # what two seconds can carry
SMALL_LEO = (
    "guide=leo_regression",
    "model.num_steps=1",
    "model.finetune_steps=1",
    "model.num_hidden=8",
    "model.width=8",
)


@dataclass(frozen=True)
class Outcome:
    """What a command leaves on the terminal, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one-line message of a mistake. The test fails if there is another line."""
        lines = self.err.strip("\n").split("\n")
        assert self.code == 1, f"exit code {self.code}: {self.err}"
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def call(name: str, *arguments: str) -> Outcome:
    """Call `python -m experiments.NAME arguments` in this process. An uncaught exception is printed, as by Python."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _main_module(name, arguments):
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as exit_:
            code = _exit_code(exit_.code)
        except BaseException:
            traceback.print_exc()
            code = 1
    wide = [line for line in out.getvalue().splitlines() if CELLS.search(line) and len(line) > text_table.WIDTH]
    assert not wide, f"expected tables of at most {text_table.WIDTH} columns, got {wide}"
    return Outcome(code, out.getvalue(), err.getvalue())


def ran(name: str, *arguments: str) -> Outcome:
    """Like `call`, for a command that must succeed."""
    outcome = call(name, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def process(name: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m experiments.NAME arguments` in a process of its own, started in the current folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(started: subprocess.Popen[str], seconds: float = 60) -> Outcome:
    """The outcome of a started process."""
    out, err = started.communicate(timeout=seconds)
    return Outcome(started.returncode, out, err)


class Inline(Executor):
    """Replacement of a pool of processes. Jobs run in this process, which has imported everything already."""

    def __init__(self, *settings: object) -> None:
        pass

    def submit(self, job: Any, /, *arguments: Any, **settings: Any) -> Future[Any]:
        future = Future[Any]()
        with beside_command():
            future.set_result(job(*arguments, **settings))
        return future


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Run the jobs of a study in this process. Tests of interruptions and mistakes need worker processes instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_metabayes.experiments.studies.run_grid.ProcessPoolExecutor", Inline)
        yield


def write_features(path: Path, **changed: np.ndarray) -> Path:
    """Write 30 classes x 20 rows x 16 features. They can be learned, but some predictions are wrong."""
    noise = np.random.default_rng(0)
    centres = noise.normal(size=(CLASSES, WIDTH)).repeat(ROWS, axis=0)
    features = (centres + noise.normal(size=centres.shape)).astype(np.float32)
    arrays = {"features": features, "labels": np.arange(CLASSES).repeat(ROWS)}
    np.savez(path, **arrays | changed)  # type: ignore[arg-type]
    return path


def on_features(path: Path) -> list[str]:
    """The settings of a smallest run on the features of a file."""
    return ["data=features", f"data.path={path}", *SMALL]


def results_of(folder: Path) -> dict[str, Any]:
    """The content of results.json, which must be strict JSON without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {folder}/results.json")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def figures_of(folder: Path) -> dict[str, Any]:
    """The results without times and without the commit."""
    clocked = ("seconds", "episodes_per_second", "commit")
    return {name: value for name, value in results_of(folder).items() if name not in clocked}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def _main_module(name: str, arguments: tuple[str, ...]) -> Iterator[None]:
    before, environment = sys.argv, dict(os.environ)
    sys.argv = [f"experiments/{name}.py", *arguments]
    try:
        with warnings.catch_warnings(), _composed_once():
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            yield
    finally:
        sys.argv = before
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _composed_once() -> Iterator[None]:
    """Hydra composes the whole configuration twice, first for `hydra.mode` alone, which no file of ours sets."""
    ask = Hydra.get_mode

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        named = any("hydra.mode" in override for override in overrides)
        return ask(hydra, config_name, overrides) if named else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


def _exit_code(code: object) -> int:
    """The exit code as the interpreter defines it. A message goes to stderr, and has exit code 1."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return int(code) if isinstance(code, int) else 0
