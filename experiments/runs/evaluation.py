"""Evaluation of a finished run under changed settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.evaluation.evaluate import evaluate
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.notes import print_notes
from pyro_metabayes.experiments.runs.restore_run import finished_checkpoint, restore_learner
from pyro_metabayes.experiments.runs.results import results_of, write_results


def evaluate_run(folder: Path, config: Config, out: Path) -> dict[str, Any]:
    """Evaluate a run and write the results to a folder."""
    results, evaluation = score_run(folder, config)
    write_results(out, results, evaluation)
    return results


def score_run(folder: Path, config: Config) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate the best learner of a run; the configuration may differ in settings without weights."""
    checkpoint = finished_checkpoint(folder, config)
    setup = restore_learner(checkpoint, config)
    print_notes(setup)
    tasks, stream = setup.tasks, setup.tasks.stream(config.eval.split)
    evaluation = evaluate(setup.learner, stream, config.eval, config.seed, truth=tasks.truth, doubled=tasks.twice)
    return results_of(setup, evaluation, None, checkpoint["training"]["skipped"]), evaluation
