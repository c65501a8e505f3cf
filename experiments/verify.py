"""python -m experiments.verify RUN_DIR: re-evaluate the checkpoint of a run and compare the metrics with results.json.

If all metrics and the scores of all tasks are equal to the last digit, the command prints one line and exits with code
0. Otherwise the command exits with code 1, and prints both values of each metric that differs. It also prints which
versions, commit, device, machine, data and settings differ, since these may explain the difference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.overrides import flatten
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.evaluation import score_run
from pyro_metabayes.experiments.runs.finished_runs import read_run
from pyro_metabayes.storage.paths import user_path

CLOCKED = ("seconds", "episodes_per_second")  # measured times, which differ between evaluations
MOVED = ("train_shift",)  # keys of results.json in version 0.1 that are now under config.data
REDEFINED = ("collapsed", "ci95")  # keys of results.json that version 0.1 defined differently
CIRCUMSTANCES = (
    "versions",
    "commit",
    "device",
    "machine",
    "data_fingerprint",
    "backbone_fingerprint",
    "config",
)  # may explain a difference


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries that differ, as {dotted name, such as "accuracy.mean": text with both values}.

    Entries that are only in `now` are ignored, since a later version may have added them.

    Args:
        saved: content of results.json.
        now: results of the new evaluation.
    """
    before, after = dict(flatten(saved)), dict(flatten(json.loads(json.dumps(now))))
    names = [name for name, value in before.items() if name not in after or after[name] != value]
    return {name: f"{before[name]} in results.json, {after.get(name, 'nothing')} now" for name in names}


def split_results(results: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split results.json into the metrics, and the entries (versions, machine, ...) that may explain differences."""
    redefined = () if "prior_information" in results else REDEFINED
    left_out = (*CLOCKED, *CIRCUMSTANCES, *MOVED, *redefined)
    metrics = {name: _without(redefined, value) for name, value in results.items() if name not in left_out}
    return metrics, {name: results[name] for name in CIRCUMSTANCES if name in results}


def _without(names: Sequence[str], value: Any) -> Any:
    """Return a mapping without the entries of these names. Another value is returned unchanged."""
    if not isinstance(value, Mapping):
        return value
    return {name: entry for name, entry in value.items() if name not in names}


def task_differences(saved: Mapping[str, np.ndarray], evaluation: Evaluation) -> dict[str, str]:
    """Return a text for each score in tasks.npz that differs from the new evaluation, with the number of tasks.

    Args:
        saved: the scores in tasks.npz by name, each of shape [tasks].
        evaluation: the new evaluation.
    """
    differing = {}
    for name, scores in saved.items():
        now = evaluation.per_task.get(name, np.zeros(0))
        if now.shape != scores.shape:
            differing[f"tasks.npz {name}"] = f"of shape {list(scores.shape)} in the file, {list(now.shape)} now"
        elif names := int((now != scores).sum()):
            differing[f"tasks.npz {name}"] = f"different scores in {names} of {len(scores)} tasks"
    return differing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="the folder of a finished run")
    folder = parser.parse_args(arguments).run
    run = read_run(folder)
    results, evaluation = score_run(folder, saved_config(folder, []))
    (metrics, circumstances), (metrics_now, circumstances_now) = split_results(run.results), split_results(results)
    differing = differences(metrics, metrics_now) | task_differences(run.per_task, evaluation)
    if not differing:
        count = len(dict(flatten(metrics)))
        print(f"equal: the {count} metrics of {folder}, and the scores of its {results['tasks']} tasks")
        return
    context = differences(circumstances, circumstances_now) or {
        "versions, commit, machine, data and settings": "the same"
    }
    for name, values in (*differing.items(), *context.items()):
        print(f"{name}: {values}")
    sys.exit(1)


if __name__ == "__main__":
    run_program(main)
