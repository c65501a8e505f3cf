"""The plots of experiments.collapse. Each function returns the path of its plot, or None without data to plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_metabayes.diagnostics.collapse_metrics import COLLAPSED_NATS
from pyro_metabayes.experiments.collapse.closed_forms import critical_samples
from pyro_metabayes.experiments.collapse.slopes import draw_lines
from pyro_metabayes.experiments.runs.plots import (
    COLOURS,
    legend_below,
    line_style,
    logarithmic,
    new_figure,
    save_figure,
)
from pyro_metabayes.experiments.studies.study import Row, read

FLOOR = 2e-4  # smaller values, such as 0, are drawn at this value on a logarithmic axis


def draw_training(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Plot sd / mean of the weights under the prior against the training step, for the first seed of each named row.

    The plot has one panel per part of the study if several parts have rows with the same label, else one panel.
    """
    plotted_rows = [row for row in rows if row.label in names]
    if not plotted_rows:
        return None
    shared = max(Counter(row.label for row in plotted_rows).values(), default=0) > 1
    panels = _by_part(plotted_rows) if shared else {"": plotted_rows}
    figure, axes = new_figure(len(panels))
    figure.set_size_inches(4.6 * len(panels) + 2.6, 3.6)
    for axis, (part, part_rows) in zip(axes, panels.items(), strict=True):
        for number, row in enumerate(part_rows):
            axis.plot(*_logged_values(row.folder(folder, 0), "relative_sd"), label=row.label, **line_style(number))
        logarithmic(axis)
        axis.set(xlabel="meta-training step", title=part)
    axes[0].set_ylabel("sd / mean of the weights under the prior")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, folder / "training.png")


def draw_samples(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Plot the sd of p(w | support), divided by the true sd, against the number of samples L in training.

    The plot has one curve per named part of the study. For each part, a vertical line marks the critical number of
    samples, below which the prior collapses (`critical_samples`).
    """
    parts = [part for part in names if any(row.part == part for row in rows)]
    if not parts:
        return None
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(5.4, 3.6)
    axis.axhline(1, color="black", lw=0.8, label="true sd")
    counts: list[int] = []
    for number, part in enumerate(parts):
        runs = [row.results(folder) for row in rows if row.part == part]
        counts = sorted({*counts, *(particles := [seeds[0]["config"]["train"]["particles"] for seeds in runs])})
        ratios = np.array([[run["sd_ratio"] for run in seeds] for seeds in runs])
        joint = runs[0][0]["config"]["objective"]["joint"]
        name, color = "joint" if joint else "per point", f"C{number}"
        _with_range(axis, particles, ratios, color=color, label=f"mc {name}")
        critical = critical_samples(runs[0][0], joint)
        axis.axvline(critical, color=color, ls="--", lw=1, label=f"{name}: collapse below L = {critical:.1f}")
    axis.set(xscale="log", xlabel="samples L in training", ylabel="sd of p(w | support) / true")
    axis.set_title("mean, lowest and highest of the seeds", fontsize=9)
    axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axis.set_xticks([], minor=True)
    legend_below(axis)
    return save_figure(figure, folder / "samples.png")


def draw_shots(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Plot the sd of p(w | support) against the number of support points in evaluation, for the named rows.

    Each learner was trained with one number of support points only.
    """
    plotted_rows = [row for row in rows if row.label in names]
    if not plotted_rows:
        return None
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(5.4, 3.6)
    points = np.zeros(0)
    for row in plotted_rows:
        run = row.folder(folder, 0)
        results = sorted(map(read, [run, *(run / "evaluations").glob("task.shot=*")]), key=lambda run: run["shot"])
        points = np.array([result["shot"] for result in results])
        data = results[0]["config"]["data"]
        true = (data["scale"] ** -2 + points / data["noise"] ** 2) ** -0.5
        fit = [result["sd_ratio"] * sd for result, sd in zip(results, true, strict=True)]
        exact = row.label == "exact"
        axis.plot(points, fit, "k-" if exact else "o-", lw=2 if exact else 1.2, label=row.label)
    axis.set(xscale="log", xlabel="support points", ylabel="sd of p(w | support)")
    axis.set_xticks(points, [str(count) for count in points])
    axis.set_xticks([], minor=True)
    legend_below(axis)
    return save_figure(figure, folder / "shots.png")


def draw_verdict(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Plot how often a draw from the prior changes the predicted class, against the prior's information about labels.

    The plot has one panel per part of the study, and one point per seed. Priors in the shaded range count as collapsed.
    """
    alive = [row for row in rows if row.results(folder)[0].get("prior_information") is not None]
    if not alive:
        return None
    panels = _by_part(alive)
    figure, axes = new_figure(len(panels))
    figure.set_size_inches(4.2 * len(panels) + 2.8, 3.6)
    for axis, (part, part_rows) in zip(axes, panels.items(), strict=True):
        axis.axvspan(FLOOR / 2, COLLAPSED_NATS, color="0.9", label=f"collapsed: below {COLLAPSED_NATS:g} nats")
        for number, row in enumerate(part_rows):
            runs = row.results(folder)
            decided = [max(run["disagreement"], FLOOR) for run in runs]
            axis.plot(
                [max(run["prior_information"], FLOOR) for run in runs],
                decided,
                "^o"[number < len(COLOURS)],
                color=f"C{number % len(COLOURS)}",
                label=row.label,
            )
        axis.set(xscale="log", yscale="log", xlabel="information under the prior, nats per task", title=part)
    axes[0].set_ylabel(f"share of draws with another prediction\n(smaller values are drawn at {FLOOR:g})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, folder / "verdict.png")


PLOTS: dict[str, Callable[[Sequence[str], Sequence[Row], Path], Path | None]] = {
    "training": draw_training,
    "samples": draw_samples,
    "shots": draw_shots,
    "verdict": draw_verdict,
    "lines": draw_lines,
}


def _by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {part: [row for row in rows if row.part == part] for part in dict.fromkeys(row.part for row in rows)}


def _logged_values(run: Path, name: str) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    defined = [line for line in lines if line[name] is not None]
    return [line["step"] for line in defined], [line[name] for line in defined]


def _with_range(axis: Any, x: Sequence[float], y: NDArray[Any], **style: Any) -> None:
    """Plot the mean over seeds of y [points, seeds] against x, with bars from the lowest to the highest seed."""
    mean = y.mean(1)
    axis.errorbar(x, mean, yerr=[mean - y.min(1), y.max(1) - mean], fmt="o-", ms=4, capsize=3, **style)
