"""A sweep (`-m`), whatever launches its jobs: one that fails leaves the others, and is named at the end.

Jobs may run in other processes, and on other machines: what they have to tell the command that started them lies in the
folder of the sweep. A job has a file there from its beginning on, which goes when it has succeeded.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_metabayes.storage.checkpoint import write_atomically

LAUNCHER = "hydra/launcher"  # a group
STOPPED_BY = {"submitit_slurm": "scancel", "submitit_local": "pkill -f submitit"}  # jobs that outlive the command
UNFINISHED = "unfinished"  # in the folder of a sweep: NAME.txt, why job NAME has no results
SILENT = "it is still at work, or was stopped"


class Sweep(Callback):
    """Notes the sweep that this process has started, and says where it is (hydra.callbacks in conf/config.yaml)."""

    folder: Path | None = None
    launcher = ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder, Sweep.launcher = Path(config.hydra.sweep.dir), config.hydra.runtime.choices[LAUNCHER]
        shutil.rmtree(Sweep.folder / UNFINISHED, ignore_errors=True)  # of an earlier one
        if Sweep.launcher in STOPPED_BY:  # which says nothing until all is done
            print(f"runs in {Sweep.folder}, what they print in {Sweep.folder / '.submitit'}", flush=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not _names_in(folder):
            print(f"runs: {folder}; side by side with: python -m experiments.compare {folder}")


def job_name() -> str:
    """Which job of a sweep this is; nothing outside one."""
    its = HydraConfig.get()
    return Path(its.runtime.output_dir).name if its.mode == RunMode.MULTIRUN else ""


def note(why: str) -> None:
    """Leave why this job of a sweep has no results; '' once it has."""
    its = HydraConfig.get()
    if not job_name() or "sweep" not in its.callbacks:  # nobody would read it
        return
    path = Path(its.sweep.dir) / UNFINISHED / f"{job_name()}.txt"
    if why:
        write_atomically(path, lambda temporary: temporary.write_text(why + "\n"))
    else:
        path.unlink(missing_ok=True)


def sweeps() -> bool:
    """Whether this process has started a sweep that has not ended."""
    return Sweep.folder is not None


def how_to_go_on() -> str:
    """A line for a sweep that is stopped; '' if this process has started none."""
    if not Sweep.folder:
        return ""
    stop = STOPPED_BY.get(Sweep.launcher)
    first = f"its jobs work on: wait for them, or stop them ({stop}); then " if stop else ""
    return f"interrupted; {first}{_again(Sweep.folder)}"


def _again(folder: Path) -> str:
    return f"the same command with hydra.sweep.dir={folder} goes on"


def unfinished_jobs() -> str:
    """A line that names the jobs without results of the sweep that this process has started; '' if there are none."""
    sweep, Sweep.folder = Sweep.folder, None
    if sweep is None:
        return ""
    folder, names = sweep / UNFINISHED, _names_in(sweep)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing is in it
    return f"unfinished jobs: {', '.join(names)}; why stands in {folder}; {_again(sweep)}" if names else ""


def _names_in(sweep: Path) -> list[str]:
    """Of the jobs that have left a note."""
    return sorted(path.stem for path in (sweep / UNFINISHED).glob("*.txt"))
