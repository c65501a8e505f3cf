"""Rows of the table of differences with intervals over training runs."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_metabayes.evaluation.intervals import RunsInterval, over_runs
from pyro_metabayes.experiments.runs.comparison import DIFFERENCES, pairs_of
from pyro_metabayes.experiments.runs.finished_runs import Run


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
