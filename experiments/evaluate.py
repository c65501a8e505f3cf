"""python -m experiments.evaluate RUN_DIR guide.num_steps=0: score a trained run again, some settings changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.assembly import Assembly
from experiments.command import answer
from experiments.config import Config, saved_config
from experiments.results import results_of, write_results
from pyro_metabayes import checkpoint
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation import Evaluation, evaluate
from pyro_metabayes.report import result_row, text_table
from pyro_metabayes.untrusted import expecting, within

TRAINED = ("train.", "pretrain.", "backbone.", "data.", "seed=")  # what made the run, and cannot be changed after it


def evaluate_run(folder: Path, config: Config, out: Path) -> dict[str, Any]:
    """Evaluate a run, and write what comes out."""
    results, evaluation = evaluated(folder, config)
    write_results(out, results, evaluation)
    return results


def evaluated(folder: Path, config: Config) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate the best learner of a run under a configuration that may differ in what has no weights."""
    state = checkpoint.load(within(folder, "checkpoint.pt"))
    with expecting(f"the checkpoint of a run in {folder}"):
        taken, skipped, best = state["training"]["step"], state["training"]["skipped"], state["best"]
        num_classes, asked = int(best["specification"]["num_classes"]), config.train.steps
    if taken < asked:
        raise UsageError(
            f"expected a finished run, got {folder}, which stands at step {taken} of {asked}; "
            f"finish it with: python -m experiments.run resume={folder}"
        )
    assembly = Assembly(config, num_classes)
    with expecting(f"the checkpoint of a run in {folder}"):
        assembly.learner.load_weights(best["weights"])
    assembly.learner.to(assembly.device)
    tasks = assembly.stream(config.eval.split)
    evaluation = evaluate(assembly.learner, tasks, config.eval, config.seed, truth=assembly.truth, twice=assembly.twice)
    return results_of(config, assembly, evaluation, None, skipped), evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("settings", nargs="*", help="changed settings, such as guide.num_steps=0 or eval.tasks=2000")
    options = parser.parse_args(arguments)
    for setting in options.settings:
        if setting.startswith(TRAINED) and not setting.startswith("data.path="):  # a file may have moved
            raise UsageError(f"an evaluation does not train: expected settings of task, eval or guide, got '{setting}'")
    config = saved_config(options.run, options.settings)
    name = ",".join(options.settings).replace("/", "_") or "again"
    out = within(options.run, "evaluations") / name
    print(text_table([result_row(evaluate_run(options.run, config, out))]))
    print(f"results: {out}")


if __name__ == "__main__":
    answer(main)
