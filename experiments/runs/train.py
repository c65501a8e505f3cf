"""Trains and evaluates the learner of a configuration, and writes the folder of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.evaluate import evaluate
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.cli.distributed import check_devices, fabric_of
from pyro_metabayes.experiments.runs.notes import print_notes
from pyro_metabayes.experiments.runs.plots import draw_curves
from pyro_metabayes.experiments.runs.results import results_of, write_results
from pyro_metabayes.experiments.runs.setup import RunSetup, set_up
from pyro_metabayes.experiments.runs.tables import task_name
from pyro_metabayes.training.loop import MetaTraining


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Train, or continue from the checkpoint in `folder`; then evaluate, write the results and return them."""
    check_devices(config)
    setup = set_up(config)
    print_notes(setup)
    folder.mkdir(parents=True, exist_ok=True)
    with fabric_of(config, folder) as fabric:
        training = training_of(setup, folder, fabric)
        if config.train.steps and not sys.stderr.isatty():  # without a progress bar
            goes_on = " continues from the last checkpoint" if (folder / "checkpoint.pt").exists() else ""
            lines = f"one line per {config.train.log_every} steps in {folder / 'metrics.jsonl'}"
            print(f"training{goes_on}: {lines}", flush=True)
        learner = training.run()
    tasks, stream = setup.tasks, setup.tasks.stream(config.eval.split)
    evaluation = evaluate(learner, stream, config.eval, config.seed, truth=tasks.truth, doubled=tasks.twice)
    results = results_of(setup, evaluation, training.state.seconds, training.state.skipped)
    task = task_name(results)
    if config.train.steps:
        draw_curves(folder, title=f"{results['guide']} on {results['data']}, {task}, seed {config.seed}")
    write_results(folder, results, evaluation)
    return results


def training_of(setup: RunSetup, folder: Path, fabric: Fabric) -> MetaTraining:
    return MetaTraining(
        learner=setup.learner,
        stream=setup.tasks.stream("train"),
        validation=setup.tasks.validation,
        settings=setup.config.train,
        folder=folder,
        fabric=fabric,
        config=dataclasses.asdict(setup.config),
        seed=setup.config.seed,
    )


def train_along(config: Config, folder: Path, fabric: Fabric) -> None:
    """Train in a process other than the first. Errors of the training are reported by the first process alone."""
    training = training_of(set_up(config), folder, fabric)
    with contextlib.suppress(UsageError):
        training.run()
