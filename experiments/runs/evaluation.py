"""A finished run evaluated again, some settings changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_metabayes.evaluation.evaluate import Evaluation, evaluate
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.restore_run import finished, trained
from pyro_metabayes.experiments.runs.results import results_of, write_results


def evaluate_run(folder: Path, config: Config, out: Path) -> dict[str, Any]:
    """Evaluate a run, and write what comes out."""
    results, evaluation = evaluated(folder, config)
    write_results(out, results, evaluation)
    return results


def evaluated(folder: Path, config: Config) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate the best learner of a run under a configuration that may differ in what has no weights."""
    state = finished(folder, config)
    assembly = trained(state, config)
    tasks = assembly.stream(config.eval.split)
    evaluation = evaluate(
        assembly.learner, tasks, config.eval, config.seed, truth=assembly.truth, doubled=assembly.twice
    )
    return results_of(config, assembly, evaluation, None, state["training"]["skipped"]), evaluation
