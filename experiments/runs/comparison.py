"""Rows of tables that compare finished runs: scores and paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyro_metabayes.diagnostics.collapse_metrics import COLLAPSE, with_information
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.finished_runs import FINGERPRINT, Run
from pyro_metabayes.experiments.runs.tables import kl_weight, number, per_cent

DIFFERENCES = {  # score: (title of the column, factor, number of decimals)
    "accuracy": ("accuracy gain, points", 100, 1),
    "nll": ("NLL difference", 1, 4),
    "joint_nll": ("joint NLL difference", 1, 4),
    "mse": ("squared error difference", 1, 4),
}
OF_CLASSES = ("accuracy %", "transductive %", "ECE", "accuracy gain, points")  # columns for classification only
OF_JOINT = ("joint NLL", "joint NLL difference")  # columns for runs with eval.joint=true only
OF_NUMBERS = ("RMSE", "squared error difference")  # columns for regression only


def groups_of(runs: Sequence[Run]) -> np.ndarray | None:
    """Return the group of each score that `over_tasks` returns; None if tasks are not drawn from groups.

    Runs may share groups. Tasks of the same group are not independent.
    """
    of_tasks = {run.tasks: run.groups for run in runs}
    groups = [group for group in of_tasks.values() if group is not None]
    return np.concatenate(groups) if groups and len(groups) == len(of_tasks) else None


def over_tasks(scored: Iterable[tuple[Run, np.ndarray]]) -> np.ndarray:
    """Average scores [tasks] over runs with the same test tasks, and concatenate the averages of different tasks."""
    by_tasks = defaultdict(list)
    for run, scores in scored:
        by_tasks[run.tasks].append(scores)
    return np.concatenate([np.mean(scores, axis=0) for scores in by_tasks.values()])


def mean_and_ci95(runs: Sequence[Run], name: str) -> tuple[float, float]:
    """Return the mean of a score over the tasks of runs, and the half width of its 95% interval over tasks.

    Scores of runs with the same test tasks are first averaged task by task.
    """
    scores = over_tasks((run, run.per_task[name]) for run in runs)
    return scores.mean(), ci95_of(scores, groups_of(runs))


def mean_metric(runs: Sequence[Run], name: str) -> float | None:
    """Return the mean of a metric that exists only for whole runs, such as the ECE; None if a run lacks the metric."""
    metrics: list[Any] = [run.results.get(name) for run in runs]
    return None if None in metrics else mean_of_runs(runs, metrics)


def mean_of_runs(runs: Sequence[Run], metrics: Sequence[float]) -> float:
    """Return the mean over runs of a metric of whole runs.

    Metrics of runs with the same test tasks are averaged first. The averages of different sets of test tasks are
    weighted by the number of tasks, as in the mean accuracy.
    """
    each = zip(runs, metrics, strict=True)
    return float(over_tasks((run, np.full(len(run.per_task["nll"]), metric)) for run, metric in each).mean())


def ci95_of_runs(runs: Sequence[Run], widths: Sequence[float]) -> float:
    """Return the half width of the 95% interval over tasks of `mean_of_runs`, from the half width of each run.

    Runs on the same tasks or groups are not independent, so they do not narrow the interval.
    """
    independent = len({run.tasks for run in runs}) if groups_of(runs) is None else 1
    return float(np.sqrt(np.mean(np.square(widths)) / independent))


def scores_row(task: str, label: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return one row of the table of scores: means over the tasks of all runs, with 95% intervals over tasks.

    Scores of runs with the same test tasks are first averaged task by task. The RMSE is the root of the mean squared
    error over all tasks, as in results.json.

    Args:
        task: the name of the data and task.
        label: the name of the row.
        runs: runs that differ only in the seed and the backbone.
    """
    common = [name for name in runs[0].per_task if all(name in run.per_task for run in runs)]
    scores = {name: mean_and_ci95(runs, name) for name in common}
    collapsed = {run.results["collapsed"] for run in runs}
    accuracy = per_cent(*scores["accuracy"]) if "accuracy" in scores else "-"
    verdict = COLLAPSE[collapsed.pop()] if len(collapsed) == 1 else "differs"
    transductive = runs[0].results["transductive"]
    return {
        "guide": label,
        "data and task": task,
        "seeds": str(len({run.results["seed"] for run in runs})),
        "steps": "-".join(sorted({str(run.results["steps"]) for run in runs})),
        # Two columns: transductive and inductive accuracies are not comparable.
        "accuracy %": "-" if transductive else accuracy,
        "transductive %": accuracy if transductive else "-",
        "RMSE": number(math.sqrt(scores["mse"][0])) if "mse" in scores else "-",
        "NLL": _interval(*scores["nll"]),
        "joint NLL": _interval(*scores["joint_nll"]) if "joint_nll" in scores else "-",
        "ECE": _calibration(runs),
        "ELBO": number(mean_metric(runs, "elbo"), 1),
        "KL weight": kl_weight(runs[0].results),
        "KL": number(mean_metric(runs, "kl"), 1),
        "prior": with_information(verdict, [run.results for run in runs]),
    }


def _interval(mean: float, ci95: float) -> str:
    return f"{mean:.3f} +- {ci95:.3f}"


def unpaired_note(label: str, runs: Sequence[Run], first_label: str, first: Sequence[Run]) -> str:
    """Return a sentence that says why two rows cannot be paired; '' if runs of both rows have the same test tasks.

    Args:
        label: the name of the row.
        runs: the runs of the row.
        first_label: the name of the first row.
        first: the runs of the first row.
    """
    if {run.tasks for run in runs} & {run.tasks for run in first}:
        return ""
    if unknown := [run for run in (*first, *runs) if FINGERPRINT not in run.results]:
        reason = f"{unknown[0].folder} records no fingerprint of its data; experiments.evaluate records one"
    else:
        one, other = dict(first[0].tasks), dict(runs[0].tasks)
        names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        reason = "; ".join(f"{name} is {one.get(name, 'unset')} and {other.get(name, 'unset')}" for name in names)
    return f"No paired difference between {first_label} and {label}: their test tasks differ or are unknown: {reason}."


def differences_row(task: str, label: str, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, str]:
    """Return one row of the table of differences: scores of `runs` minus scores of `first` on the same tasks.

    Pairing removes the variance between tasks.
    """
    row = {"guide": label, "data and task": task}
    for name, (title, factor, digits) in DIFFERENCES.items():
        pairs = pairs_of(name, runs, first)
        row[title] = "-"
        if pairs:
            gain = factor * over_tasks((run, run.per_task[name] - other.per_task[name]) for run, other in pairs)
            width = ci95_of(gain, groups_of([run for run, _ in pairs]))
            row[title] = f"{gain.mean():+.{digits}f} +- {width:.{digits}f}"
    return row


def pairs_of(name: str, runs: Sequence[Run], first: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pair each run with a run of `first` on the same tasks, and with the same backbone if there is one.

    The result is [] if `runs` is `first`.

    Args:
        name: the score that both runs of a pair must have.
        runs: the runs of a row.
        first: the runs of the first row.
    """
    if runs is first:
        return []
    scored = [run for run in first if name in run.per_task]
    partners = {run.tasks: run for run in reversed(scored)} | {(run.tasks, run.backbone): run for run in scored}
    pairs = [(run, partners.get((run.tasks, run.backbone), partners.get(run.tasks))) for run in runs]
    return [(run, other) for run, other in pairs if other is not None and name in run.per_task]


def _calibration(runs: Sequence[Run]) -> str:
    """Format the mean ECE as "0.012 +- 0.004 (floor 0.006)".

    The floor is the expected ECE of a calibrated prediction. Runs of earlier versions have no interval and no floor.
    """
    error = number(mean_metric(runs, "ece"))
    if any(run.results.get("ece_ci95") is None for run in runs):
        return error
    width = ci95_of_runs(runs, [run.results["ece_ci95"] for run in runs])
    return f"{error} +- {width:.3f} (floor {number(mean_metric(runs, 'ece_floor'))})"


def with_meaning(rows: Sequence[dict[str, str]], runs: Sequence[Run]) -> list[dict[str, str]]:
    """Remove the columns of classification, regression and joint NLL in which no run has a value."""
    of_classes = {"accuracy" in run.per_task for run in runs}
    left_out = (() if True in of_classes else OF_CLASSES) + (() if False in of_classes else OF_NUMBERS)
    if not any("joint_nll" in run.per_task for run in runs):
        left_out += OF_JOINT
    return [{name: cell for name, cell in row.items() if name not in left_out} for row in rows]
