"""Finished runs as rows of a table, and their paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.finished_runs import FINGERPRINT, Run
from pyro_metabayes.experiments.runs.tables import COLLAPSE, number, per_cent

DIFFERENCES = {  # title, factor, digits
    "accuracy": ("accuracy gain, points", 100, 1),
    "nll": ("NLL difference", 1, 4),
    "joint_nll": ("joint NLL difference", 1, 4),
    "mse": ("squared error difference", 1, 4),
}
OF_CLASSES = ("accuracy %", "transductive %", "ECE", "accuracy gain, points")  # columns without a meaning for numbers
OF_JOINT = ("joint NLL", "joint NLL difference")  # where eval.joint did not ask for it
OF_NUMBERS = ("RMSE", "squared error difference")  # and for classes


def mean_over_seeds(runs: Sequence[Run], name: str) -> float | None:
    values = [run.results[name] for run in runs]
    return None if None in values else float(np.mean(values))


def scores_row(task: str, label: str, runs: Sequence[Run]) -> dict[str, str]:
    """Means over seeds, with 95% intervals over all their tasks."""
    common = [name for name in runs[0].per_task if all(name in run.per_task for run in runs)]
    scores = {name: np.concatenate([run.per_task[name] for run in runs]) for name in common}
    collapsed = {run.results["collapsed"] for run in runs}
    accuracy = "-"
    if "accuracy" in scores:
        accuracy = per_cent(scores["accuracy"].mean(), ci95_of(scores["accuracy"]))
    transductive = runs[0].results["transductive"]
    return {
        "data and task": task,
        "guide": label,
        "seeds": str(len(runs)),
        "steps": "-".join(sorted({str(run.results["steps"]) for run in runs})),
        # Two columns: transductive and inductive accuracies are not comparable.
        "accuracy %": "-" if transductive else accuracy,
        "transductive %": accuracy if transductive else "-",
        "RMSE": "-" if "accuracy" in scores else number(mean_over_seeds(runs, "rmse")),
        "NLL": _interval(scores["nll"]),
        "joint NLL": _interval(scores["joint_nll"]) if "joint_nll" in scores else "-",
        "ECE": number(mean_over_seeds(runs, "ece")),
        "ELBO": number(mean_over_seeds(runs, "elbo"), 1),
        "KL": number(mean_over_seeds(runs, "kl"), 1),
        "prior": COLLAPSE[collapsed.pop()] if len(collapsed) == 1 else "differs",
    }


def _interval(scores: np.ndarray) -> str:
    return f"{scores.mean():.3f} +- {ci95_of(scores):.3f}"


def unpaired_note(label: str, runs: Sequence[Run], first_label: str, first: Sequence[Run]) -> str:
    """One sentence why no run shares its test tasks with a run of the first row; '' if one does."""
    if {run.tasks for run in runs} & {run.tasks for run in first}:
        return ""
    if unknown := [run for run in (*first, *runs) if FINGERPRINT not in run.results]:
        reason = f"{unknown[0].folder} records no fingerprint of its data; experiments.evaluate records one"
    else:
        one, other = dict(first[0].tasks), dict(runs[0].tasks)
        names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        reason = "; ".join(f"{name} is {one.get(name, 'unset')} and {other.get(name, 'unset')}" for name in names)
    return f"No paired difference of {label} to {first_label}, which has other test tasks: {reason}."


def differences_row(task: str, label: str, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, str]:
    """Differences to the scores of `first` on the same tasks. Pairing removes the variance between tasks."""
    row = {"data and task": task, "guide": label}
    for name, (title, factor, digits) in DIFFERENCES.items():
        of_first = {run.tasks: run.per_task.get(name) for run in first}
        pairs = [
            (run.per_task[name], of_first[run.tasks]) for run in runs if name in run.per_task and run.tasks in of_first
        ]
        row[title] = "-"
        if pairs and runs is not first:
            gain = factor * np.concatenate([scores - baseline for scores, baseline in pairs])
            row[title] = f"{gain.mean():+.{digits}f} +- {ci95_of(gain):.{digits}f}"
    return row


def with_meaning(rows: Sequence[dict[str, str]], runs: Sequence[Run]) -> list[dict[str, str]]:
    """The rows without the columns that none of the runs has: of classes, of numbers, joint NLL."""
    of_classes = {"accuracy" in run.per_task for run in runs}
    left_out = (() if True in of_classes else OF_CLASSES) + (() if False in of_classes else OF_NUMBERS)
    if not any("joint_nll" in run.per_task for run in runs):
        left_out += OF_JOINT
    return [{name: cell for name, cell in row.items() if name not in left_out} for row in rows]
