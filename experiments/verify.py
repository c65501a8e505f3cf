"""python -m experiments.verify RUN_DIR: evaluate a finished run again; are its figures those of its results.json?

Exit code 0 and a line where every figure and every task's scores are the same, to the last digit. Else exit code 1,
a line for each that differs, with both values, and for whatever else differs: versions, commit, machine, data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.evaluation.evaluate import Evaluation
from pyro_metabayes.experiments.cli.command import answer
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.runs.evaluation import evaluated
from pyro_metabayes.experiments.runs.finished import flat, read_run

CLOCKED = ("seconds", "episodes_per_second")
SURROUNDINGS = ("versions", "commit", "device", "machine", "data_fingerprint", "config")  # what figures may hang on


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Both values of each figure that differs, by its dotted name; `now` may have more than an older version saved."""
    one, other = dict(flat(saved)), dict(flat(json.loads(json.dumps(now))))
    differ = [name for name, value in one.items() if name not in other or other[name] != value]
    return {name: f"{one[name]} in results.json, {other.get(name, 'nothing')} now" for name in differ}


def parted(results: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures, and what they may hang on."""
    figures = {name: value for name, value in results.items() if name not in (*CLOCKED, *SURROUNDINGS)}
    return figures, {name: results[name] for name in SURROUNDINGS if name in results}


def task_differences(saved: Mapping[str, np.ndarray], evaluation: Evaluation) -> dict[str, str]:
    """How many tasks have another score than in tasks.npz."""
    found = {}
    for name, scores in saved.items():
        now = evaluation.per_task.get(name, np.zeros(0))
        if now.shape != scores.shape:
            found[f"tasks.npz {name}"] = f"of shape {list(scores.shape)} there, {list(now.shape)} now"
        elif differ := int((now != scores).sum()):
            found[f"tasks.npz {name}"] = f"another score in {differ} of {len(scores)} tasks"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.verify", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    folder = parser.parse_args(arguments).run
    run = read_run(folder)
    results, evaluation = evaluated(folder, saved_config(folder, []))
    (figures, around), (figures_now, around_now) = parted(run.results), parted(results)
    wrong = differences(figures, figures_now) | task_differences(run.per_task, evaluation)
    if not wrong:
        print(
            f"equal: the {len(dict(flat(figures)))} figures of {folder}, and the scores of its {results['tasks']} tasks"
        )
        return
    beside = differences(around, around_now) or {"versions, commit, machine, data and settings": "the same"}
    for name, values in (*wrong.items(), *beside.items()):
        print(f"{name}: {values}")
    sys.exit(1)


if __name__ == "__main__":
    answer(main)
