"""Rows of tables that compare finished runs: scores and paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from pyro_metabayes.evaluation.intervals import RunsInterval, ci95_of, over_runs
from pyro_metabayes.experiments.runs.finished_runs import FINGERPRINT, Run
from pyro_metabayes.experiments.runs.tables import COLLAPSE, kl_weight, number, per_cent, with_information

DIFFERENCES = {  # title, factor, digits
    "accuracy": ("accuracy gain, points", 100, 1),
    "nll": ("NLL difference", 1, 4),
    "joint_nll": ("joint NLL difference", 1, 4),
    "mse": ("squared error difference", 1, 4),
}
OF_CLASSES = ("accuracy %", "transductive %", "ECE", "accuracy gain, points")  # columns for classification only
OF_JOINT = ("joint NLL", "joint NLL difference")  # columns for runs with eval.joint=true only
OF_NUMBERS = ("RMSE", "squared error difference")  # columns for regression only


def mean_over_seeds(runs: Sequence[Run], name: str) -> float | None:
    values = [run.results[name] for run in runs]
    return None if None in values else float(np.mean(values))


def groups_of(runs: Sequence[Run]) -> np.ndarray | None:
    """Return the group of each value of `over_tasks`; None if tasks are not drawn from groups.

    Runs may share groups. Tasks of the same group are not independent.
    """
    of_tasks = {run.tasks: run.groups for run in runs}
    groups = [group for group in of_tasks.values() if group is not None]
    return np.concatenate(groups) if groups and len(groups) == len(of_tasks) else None


def over_tasks(scored: Iterable[tuple[Run, np.ndarray]]) -> np.ndarray:
    """Average the scores of tasks [tasks] over runs with the same test tasks, and concatenate over other test tasks."""
    by_tasks = defaultdict(list)
    for run, scores in scored:
        by_tasks[run.tasks].append(scores)
    return np.concatenate([np.mean(scores, axis=0) for scores in by_tasks.values()])


def scores_row(task: str, label: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return one row of the table of scores: means over the tasks of all runs, with 95% intervals over tasks.

    Args:
        task: the name of the data and task.
        label: the name of the row.
        runs: runs that differ only in the seed and the backbone.
    """
    groups = groups_of(runs)
    common = [name for name in runs[0].per_task if all(name in run.per_task for run in runs)]
    scores = {name: over_tasks((run, run.per_task[name]) for run in runs) for name in common}
    collapsed = {run.results["collapsed"] for run in runs}
    verdict = COLLAPSE[collapsed.pop()] if len(collapsed) == 1 else "differs"
    accuracy = "-"
    if "accuracy" in scores:
        accuracy = per_cent(scores["accuracy"].mean(), ci95_of(scores["accuracy"], groups))
    transductive = runs[0].results["transductive"]
    return {
        "guide": label,
        "data and task": task,
        "seeds": str(len({run.results["seed"] for run in runs})),
        "steps": "-".join(sorted({str(run.results["steps"]) for run in runs})),
        # Two columns: transductive and inductive accuracies are not comparable.
        "accuracy %": "-" if transductive else accuracy,
        "transductive %": accuracy if transductive else "-",
        "RMSE": "-" if "accuracy" in scores else number(mean_over_seeds(runs, "rmse")),
        "NLL": _interval(scores["nll"], groups),
        "joint NLL": _interval(scores["joint_nll"], groups) if "joint_nll" in scores else "-",
        "ECE": _calibration(runs),
        "ELBO": number(mean_over_seeds(runs, "elbo"), 1),
        "KL weight": kl_weight(runs[0].results),
        "KL": number(mean_over_seeds(runs, "kl"), 1),
        "prior": with_information(verdict, [run.results for run in runs]),
    }


def _interval(scores: np.ndarray, groups: np.ndarray | None) -> str:
    return f"{scores.mean():.3f} +- {ci95_of(scores, groups):.3f}"


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
    """Pair each run with a run of `first` on the same tasks, if possible with the same backbone; [] if they are equal.

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


def training_runs_row(task: str, label: str, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, str]:
    """Return one row of the table of differences from `first`, with 95% intervals over training runs.

    Runs are paired by tasks and backbone. A difference is marked better or worse if its interval excludes 0.
    """
    row = {"guide": label, "data and task": task, "runs": _count(runs)}
    for name, (title, factor, digits) in DIFFERENCES.items():
        pairs = [(run, other) for run, other in pairs_of(name, runs, first) if run.backbone == other.backbone]
        row[title] = "-"
        if pairs:
            gains = [factor * float((run.per_task[name] - other.per_task[name]).mean()) for run, other in pairs]
            row[title] = _marked(
                over_runs(gains, [run.backbone for run, _ in pairs]), digits, better=1 if factor > 1 else -1
            )
    return row


def _count(runs: Sequence[Run]) -> str:
    """Format the number of runs and of their distinct pretrained backbones, such as "3, with 1 backbone"."""
    backbones = len({run.backbone for run in runs})
    return f"{len(runs)}, with {backbones} backbone{'s' * (backbones > 1)}"


def _marked(difference: RunsInterval, digits: int, better: int) -> str:
    """Format a difference with its interval, such as "+1.2 +- 0.4, better".

    Args:
        difference: mean and 95% interval.
        digits: number of decimals.
        better: 1 if larger scores are better, -1 if smaller scores are better.
    """
    if difference.ci95 is None:
        return f"{difference.mean:+.{digits}f}"
    text = f"{difference.mean:+.{digits}f} +- {difference.ci95:.{digits}f}"
    if not difference.excludes_zero:
        return text
    return f"{text}, {'better' if difference.mean * better > 0 else 'worse'}"


def _calibration(runs: Sequence[Run]) -> str:
    """Format the mean ECE over seeds as "0.012 +- 0.004 (floor 0.006)".

    The floor is the expected ECE of a calibrated prediction. Runs of earlier versions have no interval and no floor.
    Runs on the same tasks or groups are not independent, so they do not narrow the interval.
    """
    error = number(mean_over_seeds(runs, "ece"))
    if any(run.results.get("ece_ci95") is None for run in runs):
        return error
    independent = len({run.tasks for run in runs}) if groups_of(runs) is None else 1
    width = float(np.sqrt(np.mean([run.results["ece_ci95"] ** 2 for run in runs]) / independent))
    return f"{error} +- {width:.3f} (floor {number(mean_over_seeds(runs, 'ece_floor'))})"


def with_meaning(rows: Sequence[dict[str, str]], runs: Sequence[Run]) -> list[dict[str, str]]:
    """Remove the columns of classification, regression and joint NLL in which no run has a value."""
    of_classes = {"accuracy" in run.per_task for run in runs}
    left_out = (() if True in of_classes else OF_CLASSES) + (() if False in of_classes else OF_NUMBERS)
    if not any("joint_nll" in run.per_task for run in runs):
        left_out += OF_JOINT
    return [{name: cell for name, cell in row.items() if name not in left_out} for row in rows]
