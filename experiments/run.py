"""python -m experiments.run guide=sib: meta-train a guide, score it on unseen classes, leave a folder of results."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning_fabric import Fabric
from omegaconf import DictConfig

from experiments.assembly import Assembly
from experiments.command import keep_settings, run_command
from experiments.config import Config, saved_config, typed
from experiments.devices import check_devices, fabric_of, follow, follows
from experiments.results import results_of, write_results
from experiments.sweep import job_name
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation import evaluate
from pyro_metabayes.optimisation import TrainSettings
from pyro_metabayes.report import draw_curves, result_row, task_name, text_table
from pyro_metabayes.training import MetaTraining


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Train as the configuration says (or go on where `folder` stands), evaluate, write the results."""
    check_devices(config)
    assembly = Assembly(config)
    folder.mkdir(parents=True, exist_ok=True)
    with fabric_of(config, folder) as fabric:
        training = training_of(config, assembly, folder, fabric)
        if not sys.stderr.isatty():  # which has no bar
            goes_on = " goes on from the last checkpoint" if (folder / "checkpoint.pt").exists() else ""
            lines = f"every {config.train.log_every} steps a line in {folder / 'metrics.jsonl'}"
            print(f"training{goes_on}: {lines}", flush=True)
        learner = training.run()
    tasks = assembly.stream(config.eval.split)
    evaluation = evaluate(learner, tasks, config.eval, config.seed, truth=assembly.truth, twice=assembly.twice)
    results = results_of(config, assembly, evaluation, training.seconds, training.skipped)
    task = task_name(config.task.way, config.task.shot, results["base_classes"])
    draw_curves(folder, title=f"{results['guide']} on {results['data']}, {task}, seed {config.seed}")
    write_results(folder, results, evaluation)
    return results


def training_of(config: Config, assembly: Assembly, folder: Path, fabric: Fabric) -> MetaTraining:
    return MetaTraining(
        learner=assembly.learner,
        stream=assembly.stream("train"),
        validation=assembly.stream("val"),
        settings=config.train,
        folder=folder,
        fabric=fabric,
        config=dataclasses.asdict(config),
        seed=config.seed,
    )


def train_along(config: Config, folder: Path, fabric: Fabric) -> None:
    """What the other processes of a job do; a run that diverges does so on the first, too, which says it."""
    training = training_of(config, Assembly(config), folder, fabric)
    with contextlib.suppress(UsageError):
        training.run()


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
