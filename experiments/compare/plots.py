"""Plot of experiments.compare."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.experiments.runs.comparison import mean_and_ci95
from pyro_metabayes.experiments.runs.finished_runs import Run
from pyro_metabayes.experiments.runs.plots import (
    limits_without_outliers,
    line_style,
    logarithmic,
    new_figure,
    save_figure,
)

Groups = Mapping[tuple[str, str], Sequence[Run]]
Curve = tuple[list[int], list[float]]  # steps and values


def draw(groups: Groups, path: Path) -> None:
    """Plot accuracy (or squared error), NLL, and the sd of the outputs under the prior during training, by group."""
    several = len({task for task, _ in groups}) > 1
    names = [_name(label, task if several else "") for task, label in groups]
    curves = zip(names, map(spread_in_training, groups.values()), strict=True)
    alive = {name: curve for name, curve in curves if curve is not None}
    of_classes = any("accuracy" in run.per_task for runs in groups.values() for run in runs)
    first = ("accuracy", 100, "accuracy, %") if of_classes else ("mse", 1, "squared error")
    figure, axes = new_figure(3 if alive else 2)
    figure.set_size_inches(2.4 + 2.9 * len(axes), max(3.2, 1.4 + 0.34 * len(groups)))
    _draw_scores(axes[0], groups, *first)
    _draw_scores(axes[1], groups, "nll", 1, "NLL, nats per query")
    axes[0].set_yticklabels(names)
    axes[1].set_yticklabels([])
    if alive:
        _draw_spreads(axes[2], alive, "sd of logits under the prior" if of_classes else "sd of means / noise")
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + 2.4, height)
    for axis in axes:
        axis.tick_params(labelsize=8)
    figure.suptitle("means over tasks, 95% intervals over tasks; hollow: transductive", fontsize=9)
    save_figure(figure, path)


def _draw_spreads(axis: Any, curves: Mapping[str, Curve], title: str) -> None:
    for number, (name, (steps, spread)) in enumerate(curves.items()):
        axis.plot(steps, spread, label=name, **line_style(number))
    logarithmic(axis)
    axis.set(xlabel="meta-training step")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _name(label: str, task: str) -> str:
    """Return the name of a row, wrapped to the width of the plot. `task` is '' if all rows have the same task."""
    return "\n".join([*textwrap.wrap(label, 30, break_on_hyphens=False), *([task] if task else [])])


def _draw_scores(axis: Any, groups: Groups, score: str, factor: float, title: str) -> None:
    """Plot one score of all groups of runs. Group number n is at height -n, even if other groups lack the score."""
    means: dict[int, float] = {}
    for height, runs in enumerate(groups.values()):
        if score in runs[0].per_task:
            mean, ci95 = mean_and_ci95(runs, score)
            fill = "white" if runs[0].results["transductive"] else "C0"
            means[-height] = factor * mean
            axis.errorbar(factor * mean, -height, xerr=factor * ci95, fmt="o", color="C0", mfc=fill, capsize=3)
    _mark_outliers(axis, means)
    axis.set(yticks=range(0, -len(groups), -1), ylim=(0.5 - len(groups), 0.5))
    axis.set_title(title, fontsize=10)


def _mark_outliers(axis: Any, means: Mapping[int, float]) -> None:
    """Limit the axis to scores that are not outliers, and write the score of an outlier at the edge.

    Args:
        axis: axis of the plot.
        means: mean score of each group of runs, by the height of the group in the plot.
    """
    if (limits := limits_without_outliers(list(means.values()))) is None:
        return
    axis.set_xlim(*limits)
    for height, mean in means.items():
        if not limits[0] <= mean <= limits[1]:
            left = mean < limits[0]
            text, side = (f"< {mean:.3g}", "left") if left else (f"{mean:.3g} >", "right")
            axis.text(limits[0] if left else limits[1], height, text, ha=side, va="center", fontsize=8, color="C3")


def spread_in_training(runs: Sequence[Run]) -> Curve | None:
    """Return steps and logit_sd of the first run that has a training log and a prior that is not flat.

    logit_sd is the sd of the logits under the prior; in a regression, of the means divided by the noise. The result is
    None if there is no such run.
    """
    for run in runs:
        file = run.folder / "metrics.jsonl"
        if run.results["logit_sd"] is not None and file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            defined = [line for line in lines if line["logit_sd"] is not None]
            return [line["step"] for line in defined], [line["logit_sd"] for line in defined]
    return None
