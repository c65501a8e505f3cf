"""python -m experiments.run guide=sib: meta-train a guide, score it on unseen classes, leave a folder of results."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import keep_settings, run_command
from pyro_metabayes.experiments.cli.config import Config, saved_config, typed
from pyro_metabayes.experiments.cli.distributed import follow, follows
from pyro_metabayes.experiments.cli.sweeps import job_name
from pyro_metabayes.experiments.runs.tables import result_row, text_table
from pyro_metabayes.experiments.runs.train import run, train_along
from pyro_metabayes.training.optimisation import TrainSettings


def note_other_steps(before: TrainSettings, folder: Path) -> None:
    """A cosine that has ended cannot be taken back, and earlier evaluations were of another learner."""
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    if before.schedule == "cosine":
        note = f"note: the schedule was made for {before.steps} steps"
        print(f"{note}; a run started with as many as now would end elsewhere", file=sys.stderr)


def settings_for(composed: DictConfig, folder: Path) -> Config:
    """Of the run to make in the folder, or to go on with there; a folder that holds another is refused.

    Only a job of a sweep goes on by itself, with a run of its own settings: the same command again, or a scheduler that
    took the job's machine away and gives it another, means just that.
    """
    if composed.resume:
        overrides = [item.lstrip("+") for item in HydraConfig.get().overrides.task if not item.startswith("resume=")]
        return saved_config(folder, overrides)
    config = typed(composed)
    if (folder / "checkpoint.pt").exists():
        if not job_name():
            raise UsageError(f"expected a new folder, got {folder}, which holds a run; resume={folder} continues it")
        if saved_config(folder, []) != config:
            other = f"{folder}, which holds a run of other settings"
            raise UsageError(f"expected a new folder, got {other}; name another: hydra.sweep.dir=DIR")
    elif (folder / "results.json").exists():
        raise UsageError(f"expected a new folder, got {folder}, which holds the results of a run; name another")
    else:
        keep_settings(composed, folder)
    return config


def main(composed: DictConfig, folder: Path) -> None:
    config = settings_for(composed, folder)
    if job_name() and (folder / "results.json").exists():
        print(f"kept, as these settings have been run: {folder}")
        return
    before = saved_config(folder, []) if composed.resume else config
    results = run(config, folder)
    if config.train.steps != before.train.steps:
        note_other_steps(before.train, folder)
    print(text_table([result_row(results)]))
    if skipped := results["skipped"]:
        print(f"{skipped} of {results['steps']} steps were left out: a loss or gradient was not finite (train.on_nan)")
    num_answers = results["way"] + (results["base_classes"] or 0)
    if results["accuracy"] and results["nll"] > (guessing := math.log(num_answers)):
        print(f"worse than guessing (NLL {guessing:.3f}): too few steps, or diverged (lower train.learning_rate)")
    print(f"results, curves and checkpoint: {folder}")


if __name__ == "__main__":
    if follows():
        follow(train_along)
    else:
        run_command(main)
