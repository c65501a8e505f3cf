"""python -m experiments.evaluate RUN_DIR guide.num_steps=0: score a trained run again, some settings changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.command import answer
from experiments.config import Config, saved_config
from experiments.results import results_of, write_results
from experiments.trained import finished, refuse_training, trained
from pyro_metabayes.evaluation import Evaluation, evaluate
from pyro_metabayes.report import result_row, text_table
from pyro_metabayes.untrusted import within


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
    evaluation = evaluate(assembly.learner, tasks, config.eval, config.seed, truth=assembly.truth, twice=assembly.twice)
    return results_of(config, assembly, evaluation, None, state["training"]["skipped"]), evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("settings", nargs="*", help="changed settings, such as guide.num_steps=0 or eval.tasks=2000")
    options = parser.parse_args(arguments)
    refuse_training(options.settings)
    config = saved_config(options.run, options.settings)
    name = ",".join(options.settings).replace("/", "_") or "again"
    out = within(options.run, "evaluations") / name
    print(text_table([result_row(evaluate_run(options.run, config, out))]))
    print(f"results: {out}")


if __name__ == "__main__":
    answer(main)
