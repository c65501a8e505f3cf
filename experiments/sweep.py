"""A sweep (`-m`), whatever launches its jobs: one that fails leaves the others, and is named at the end.

Jobs may run in other processes, and on other machines: what they have to tell the command that started them lies in the
folder of the sweep.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from pyro_metabayes.checkpoint import write_atomically

FAILED = "failed"  # in the folder of a sweep: NAME.txt, why job NAME failed


class Sweep(Callback):
    """Notes the folder of the sweep that this process has started (hydra.callbacks in conf/config.yaml)."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        shutil.rmtree(Sweep.folder / FAILED, ignore_errors=True)  # of an earlier one


def job_name() -> str:
    """Which job of a sweep this is; nothing outside one."""
    its = HydraConfig.get()
    return Path(its.runtime.output_dir).name if its.mode == RunMode.MULTIRUN else ""


def keep_failure(why: str) -> None:
    """Leave in the folder of the sweep why this job of it failed."""
    path = Path(HydraConfig.get().sweep.dir) / FAILED / f"{job_name()}.txt"
    write_atomically(path, lambda temporary: temporary.write_text(why + "\n"))


def failed_jobs() -> str:
    """A line that names the failed jobs of the sweep that this process has started; nothing if there are none."""
    folder, Sweep.folder = Sweep.folder, None
    if folder is None:
        return ""
    names = sorted(path.stem for path in (folder / FAILED).glob("*.txt"))
    return f"failed jobs: {', '.join(names)}; why stands in {folder / FAILED}" if names else ""
