"""python -m experiments.evaluate RUN_DIR guide.num_steps=0: score a trained run again, some settings changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from experiments.command import one_line
from experiments.config import Config, saved_config
from experiments.results import results_of, write_results
from experiments.trained import refuse_training, trained
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation import evaluate
from pyro_metabayes.report import result_row, text_table


def evaluate_run(folder: Path, config: Config, out: Path) -> dict[str, Any]:
    """Evaluate the best learner of a run under a configuration that may differ in what has no weights."""
    assembly = trained(folder, config)
    tasks = assembly.stream(config.eval.split)
    evaluation = evaluate(assembly.learner, tasks, config.eval, config.seed, truth=assembly.truth, twice=assembly.twice)
    results = results_of(config, assembly, evaluation, train_seconds=None)
    write_results(out, results, evaluation)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("settings", nargs="*", help="changed settings, such as guide.num_steps=0 or eval.tasks=2000")
    options = parser.parse_args(arguments)
    refuse_training(options.settings)
    config = saved_config(options.run, options.settings)
    name = ",".join(options.settings).replace("/", "_") or "again"
    out = options.run / "evaluations" / name
    print(text_table([result_row(evaluate_run(options.run, config, out))]))
    print(f"results: {out}")


if __name__ == "__main__":
    try:
        main()
    except (UsageError, OmegaConfBaseException, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
