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

from pyro_metabayes.checkpoint import write_atomically

UNFINISHED = "unfinished"  # in the folder of a sweep: NAME.txt, why job NAME has no results
SILENT = "it is still at work, or was stopped"


class Sweep(Callback):
    """Notes the folder of the sweep that this process has started (hydra.callbacks in conf/config.yaml)."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        shutil.rmtree(Sweep.folder / UNFINISHED, ignore_errors=True)  # of an earlier one


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


def how_to_go_on() -> str:
    """A line for a sweep that is stopped; '' if this process has started none."""
    return f"interrupted; the same command with hydra.sweep.dir={Sweep.folder} goes on" if Sweep.folder else ""


def unfinished_jobs() -> str:
    """A line that names the jobs without results of the sweep that this process has started; '' if there are none."""
    sweep, Sweep.folder = Sweep.folder, None
    if sweep is None:
        return ""
    folder = sweep / UNFINISHED
    names = sorted(path.stem for path in folder.glob("*.txt"))
    with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing is in it
    return f"unfinished jobs: {', '.join(names)}; why stands in {folder}" if names else ""
