"""python -m experiments.run guide=sib: meta-train a guide, evaluate it on unseen classes, save the results."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import keep_settings, run_command
from pyro_metabayes.experiments.cli.config import Config, config_from, saved_config
from pyro_metabayes.experiments.cli.distributed import is_worker, run_worker
from pyro_metabayes.experiments.cli.sweeps import job_name
from pyro_metabayes.experiments.runs.tables import result_row, text_table
from pyro_metabayes.experiments.runs.train import run, train_along
from pyro_metabayes.training.optimisation import TrainSettings


def note_other_steps(before: TrainSettings, folder: Path) -> None:
    """Delete evaluations of the earlier learner; a cosine schedule that has ended cannot be extended."""
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    if before.schedule == "cosine":
        note = f"note: the schedule was made for {before.steps} steps"
        print(f"{note}; a new run with the present number of steps would give another result", file=sys.stderr)


def settings_for(composed: DictConfig, folder: Path) -> Config:
    """The settings of the run to start or to continue in the folder; a folder with another run is refused.

    Only a job of a sweep continues a run of the same settings without resume=: its command was repeated, or a scheduler
    has restarted it.
    """
    if composed.resume:
        overrides = [item.lstrip("+") for item in HydraConfig.get().overrides.task if not item.startswith("resume=")]
        return saved_config(folder, overrides)
    config = config_from(composed)
    if (folder / "checkpoint.pt").exists():
        if not job_name():
            raise UsageError(f"expected a new folder, got {folder}, which holds a run; resume={folder} continues it")
        if saved_config(folder, []) != config:
            conflict = f"{folder}, which holds a run of other settings"
            raise UsageError(f"expected a new folder, got {conflict}; name another: hydra.sweep.dir=DIR")
    elif (folder / "results.json").exists():
        raise UsageError(f"expected a new folder, got {folder}, which holds the results of a run; name another")
    else:
        keep_settings(composed, folder)
    return config


def main(composed: DictConfig, folder: Path) -> None:
    config = settings_for(composed, folder)
    if job_name() and (folder / "results.json").exists():
        print(f"kept: the run with these settings is finished in {folder}")
        return
    before = saved_config(folder, []) if composed.resume else config
    results = run(config, folder)
    if config.train.steps != before.train.steps:
        note_other_steps(before.train, folder)
    print(text_table([result_row(results)]))
    note_poor_result(results)
    print(f"results, curves and checkpoint: {folder}")


def note_poor_result(results: Mapping[str, Any]) -> None:
    """Notes about skipped steps and about a likelihood below that of uniform predictions."""
    if skipped := results["skipped"]:
        print(f"{skipped} of {results['steps']} steps were skipped: a loss or gradient was not finite (train.on_nan)")
    num_answers = results["way"] + (results["base_classes"] or 0)
    if results["way"] > 1 and results["accuracy"] and results["nll"] > (chance := math.log(num_answers)):
        print(f"worse than chance (NLL {chance:.3f}): too few steps, or diverged (lower train.learning_rate)")


if __name__ == "__main__":
    if is_worker():
        run_worker(train_along)
    else:
        run_command(main)
