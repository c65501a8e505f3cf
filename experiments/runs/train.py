"""Trains and evaluates the learner of a configuration, and writes the folder of the run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.build import build, check
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.cli.distributed import check_devices, processes_of
from pyro_metabayes.experiments.cli.explanations import PROVIDED
from pyro_metabayes.experiments.runs.evaluation import evaluated
from pyro_metabayes.experiments.runs.notes import print_notes
from pyro_metabayes.experiments.runs.plots import draw_curves
from pyro_metabayes.experiments.runs.results import results_of, write_results
from pyro_metabayes.experiments.runs.setup import RunSetup, set_up
from pyro_metabayes.experiments.runs.tables import task_name
from pyro_metabayes.loggers.run_log import Logger, RunLog
from pyro_metabayes.training.fit import fit
from pyro_metabayes.training.log import History
from pyro_metabayes.training.loop import Callback
from pyro_metabayes.training.optimisation import compile_networks
from pyro_metabayes.training.optimizer_state import OptimisationBySettings


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Train a run from the start or from the checkpoint in `folder`, evaluate it, and write and return its results."""
    check_devices(config)
    if config.eval.ensemble:
        raise UsageError(
            "expected eval.ensemble only in experiments.evaluate, got a training run; remove eval.ensemble"
        )
    if config.logger:
        with naming_choices(config):
            check(config.logger, "logger", PROVIDED["logger"])
    setup = set_up(config)
    print_notes(setup)
    if config.train.steps:
        _announce(config, folder)
    with RunLog(_logger_of(config, folder), folder, dataclasses.asdict(config)) as log:
        with processes_of(config, folder):
            history = train(setup, folder, [log])
        evaluation = evaluated(setup, setup.learner)
        results = results_of(setup, evaluation, history.seconds, history.skipped)
        log.log_results(evaluation.metrics, history.steps)
    task = task_name(results)
    if config.train.steps:
        draw_curves(folder, f"{results['guide']} on {results['data']}, {task}, seed {config.seed}", results)
    write_results(folder, results, evaluation)
    return results


def _announce(config: Config, folder: Path) -> None:
    """Print in which file the training can be followed. This happens before slow imports."""
    goes_on = " continues from the last checkpoint" if (folder / "checkpoint.pt").exists() else ""
    lines = f"one line per {config.train.log_every} steps in {folder / 'metrics.jsonl'}"
    print(f"training{goes_on}: {lines}", flush=True)


def _logger_of(config: Config, folder: Path) -> Logger | None:
    """Build the logger that the settings choose; None without a logger."""
    name = f"{config.choices['guide']} on {config.choices['data']}, seed {config.seed}"
    return build(config.logger, "logger", folder=folder, name=name) if config.logger else None


def train(setup: RunSetup, folder: Path, callbacks: Sequence[Callback] = ()) -> History:
    """Train the learner of a run by its settings train.*, from the checkpoint in the folder if there is one."""
    learner, settings = setup.learner.to(setup.device), setup.config.train
    if settings.compile:
        compile_networks(learner)
    try:
        return fit(
            learner,
            setup.tasks.stream("train"),
            setup.tasks.validation,
            steps=settings.steps,
            optimiser=OptimisationBySettings(learner, settings),
            callbacks=callbacks,
            folder=folder,
            batch_size=settings.tasks_per_step,
            kl_weight=settings.kl_weight,
            clip=settings.clip,
            clip_value=settings.clip_value,
            clip_each=settings.clip_each,
            on_nan=settings.on_nan,
            log_every=settings.log_every,
            validate_every=settings.validate_every,
            validation_tasks=settings.validation_tasks,
            seed=setup.config.seed,
            config=dataclasses.asdict(setup.config),
        )
    except Interrupted as stop:  # the remedy of `fit` does not fit a command; `run_command` appends resume=
        raise KeyboardInterrupt(str(stop).partition(";")[0]) from None


def train_along(config: Config, folder: Path) -> None:
    """Train in a worker process. Only the first process reports errors of the training."""
    setup = set_up(config)
    with contextlib.suppress(UsageError):
        train(setup, folder)
