"""Sweeps (`-m`) with any launcher. After a failure the other jobs continue, and failed jobs are listed at the end.

Jobs may run in other processes and on other machines. Each job writes a file to the folder of the sweep when the job
starts, and removes the file when the job succeeds.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_metabayes.experiments.cli.arguments import command_line
from pyro_metabayes.storage.checkpoint import write_atomically

LAUNCHER = "hydra/launcher"  # group of choices of Hydra
# Launchers whose jobs continue after Ctrl-C, with the command that stops the jobs.
STOPPED_BY = {"submitit_slurm": "scancel", "submitit_local": "pkill -f submitit"}
UNFINISHED = "unfinished"  # subfolder of a sweep; NAME.txt states why job NAME has no results
RUNNING = "still running, or stopped"


class Sweep(Callback):
    """Hydra callback that records the folder of the sweep of this process, and prints it (see conf/config.yaml)."""

    folder: Path | None = None
    launcher = ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder, Sweep.launcher = Path(config.hydra.sweep.dir), config.hydra.runtime.choices[LAUNCHER]
        shutil.rmtree(Sweep.folder / UNFINISHED, ignore_errors=True)  # left by an earlier sweep
        if Sweep.launcher in STOPPED_BY:  # these launchers print nothing until all jobs have ended
            print(f"runs: {Sweep.folder}; their output: {Sweep.folder / '.submitit'}", flush=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not _unfinished_names(folder):
            print(f"runs: {folder}; compare them with: {command_line('compare')} {folder}")


def job_name() -> str:
    """Return the name of this job of a sweep; '' outside a sweep."""
    hydra_config = HydraConfig.get()
    return Path(hydra_config.runtime.output_dir).name if hydra_config.mode == RunMode.MULTIRUN else ""


def another_folder() -> str:
    """Return advice for a message about a folder in use: the setting that names another folder."""
    return f"name another folder: hydra.{'sweep' if job_name() else 'run'}.dir=DIR"


def write_note(reason: str) -> None:
    """Write a file that says why this job of a sweep has no results; remove the file if `reason` is ''."""
    hydra_config = HydraConfig.get()
    if not job_name() or "sweep" not in hydra_config.callbacks:  # only the callback reads these files
        return
    path = Path(hydra_config.sweep.dir) / UNFINISHED / f"{job_name()}.txt"
    if reason:
        write_atomically(path, lambda temporary: temporary.write_text(reason + "\n"))
    else:
        path.unlink(missing_ok=True)


def in_sweep() -> bool:
    """Return whether this process has started a sweep that is still running."""
    return Sweep.folder is not None


def interruption_message() -> str:
    """Return a one-line message for an interrupted sweep; '' if this process runs no sweep."""
    if not Sweep.folder:
        return ""
    stop = STOPPED_BY.get(Sweep.launcher)
    jobs = f"the jobs are still running: wait for them, or stop them ({stop}); then " if stop else ""
    return f"interrupted; {jobs}{_continuation(Sweep.folder)}"


def _continuation(folder: Path) -> str:
    return f"continue with the same command and {shlex.quote(f'hydra.sweep.dir={folder}')}"


def unfinished_jobs() -> str:
    """End the sweep of this process, and return one line that lists its jobs without results; '' if there are none."""
    sweep, Sweep.folder = Sweep.folder, None
    if sweep is None:
        return ""
    folder, names = sweep / UNFINISHED, _unfinished_names(sweep)
    with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds only if the folder is empty
    return f"unfinished jobs: {', '.join(names)}; reasons: {folder}; {_continuation(sweep)}" if names else ""


def _unfinished_names(sweep: Path) -> list[str]:
    """Return the names of the jobs without results, which have a file in the subfolder `unfinished`."""
    return sorted(path.stem for path in (sweep / UNFINISHED).glob("*.txt"))
