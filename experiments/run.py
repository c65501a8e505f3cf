"""python -m experiments.run guide=sib: meta-train a guide, evaluate it on unseen classes, and save the results."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import keep_settings, run_command
from pyro_metabayes.experiments.cli.config import Config, config_from, saved_config
from pyro_metabayes.experiments.cli.distributed import is_worker, run_worker
from pyro_metabayes.experiments.cli.overrides import unquoted
from pyro_metabayes.experiments.cli.sweeps import another_folder, job_name
from pyro_metabayes.experiments.runs.notes import note_division, note_low_likelihood, note_poor_result
from pyro_metabayes.experiments.runs.tables import results_text
from pyro_metabayes.experiments.runs.train import run, train_along
from pyro_metabayes.training.optimisation import TrainSettings


def note_other_steps(before: TrainSettings, now: TrainSettings, folder: Path) -> None:
    """Clean up after a run was resumed with another number of steps.

    Deletes the evaluations and the error analysis of the earlier learner. Prints a note if the learning rates follow a
    cosine schedule, which depends on the number of steps.

    Args:
        before: the training settings of the steps before the run was resumed.
        now: the training settings of the steps after that.
        folder: the folder of the run.
    """
    for results in ("evaluations", "errors"):
        shutil.rmtree(folder / results, ignore_errors=True)
    if before.schedule == now.schedule == "cosine":
        print(
            f"note: the learning rates followed a cosine schedule over {before.steps} steps, and one over "
            f"{now.steps} steps after the run was resumed; a new run with train.steps={now.steps} gives another result",
            file=sys.stderr,
        )


def settings_for(composed: DictConfig, folder: Path) -> Config:
    """Return the settings of the run to start or to continue in the folder.

    A run is continued if resume= is set. A job of a sweep (-m) is also continued without resume=, if the settings are
    the same: the sweep or the job may have been started again.

    Raises:
        UsageError: the folder holds a run, and the run is not to be continued.
    """
    if composed.resume:
        overrides = [unquoted(item) for item in HydraConfig.get().overrides.task if not item.startswith("resume=")]
        return saved_config(folder, overrides)
    config = config_from(composed)
    if (folder / "checkpoint.pt").exists():
        if not job_name():
            remedy = f"{shlex.quote(f'resume={folder}')} continues it, hydra.run.dir=DIR starts a run in another folder"
            raise UsageError(f"expected a new folder, got {folder}, which already holds a run; {remedy}")
        if replace(saved_config(folder, []).with_absolute_path(), estimated={}) != config.with_absolute_path():
            conflict = f"{folder}, which holds a run with other settings"
            remedy = f"continue it with its own settings, or {another_folder()}"
            raise UsageError(f"expected a new folder, got {conflict}; {remedy}")
    elif (folder / "results.json").exists():
        raise UsageError(f"expected a new folder, got {folder}, which holds the results of a run; {another_folder()}")
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
        note_other_steps(before.train, config.train, folder)
    print(results_text(results))
    note_division(results)
    note_poor_result(results)
    note_low_likelihood(results)
    print(f"results, curves and checkpoint: {folder}")


if __name__ == "__main__":
    if is_worker():
        run_worker(train_along)
    else:
        run_command(main)
