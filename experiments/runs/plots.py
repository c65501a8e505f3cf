"""Plots of runs, and the style of all plots."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.runs.tables import split_name
from pyro_metabayes.storage.checkpoint import write_atomically

SPREADS = {"relative_sd": "sd / mean of weights", "logit_sd": "sd of logits", "disagreement": "disagreement"}
RUNNING = 10  # number of logged steps over which a running mean is taken
REACH = 20  # a value is an outlier if its distance from the median exceeds this multiple of the median distance
VECTOR = ("pdf", "svg")
FORMATS = "METABAYES_PLOTS"  # environment variable with further formats of plots, such as pdf,svg
# Okabe and Ito (2008), "Color Universal Design": distinct for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")


def plot_formats() -> list[str]:
    """Return the vector formats (pdf, svg) in which plots are saved beside PNG.

    Raises:
        UsageError: METABAYES_PLOTS names another format.
    """
    formats = [name.strip() for name in os.environ.get(FORMATS, "").split(",") if name.strip()]
    if others := [name for name in formats if name not in VECTOR]:
        raise UsageError(f"expected {FORMATS} to be {', '.join(VECTOR)} or both, got '{others[0]}'")
    return formats


def draw_curves(folder: Path, title: str, results: Mapping[str, Any]) -> Path:
    """Plot loss, accuracy (or NLL of a regression) and collapse metrics against the training step, to curves.png.

    Args:
        folder: the folder of the run, with metrics.jsonl.
        title: the title of the plot.
        results: content of results.json, for the test score.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alive = any(line["prior_sd"] is not None for line in lines)
    figure, axes = new_figure(3 if alive else 2)
    _draw_noisy(axes[0], lines, "loss", 1)
    outside = _leave_out_outliers(axes[0], _curve(lines, "loss")[1])
    axes[0].set_title(f"loss, nats per task{outside}")
    _draw_scores(axes[1], lines, results)
    if alive:
        _draw_spreads(axes[2], lines, results["accuracy"] is not None)
    for axis in axes:
        axis.set_xlabel("meta-training step")
        if len(lines) == 1:
            axis.text(
                0.5, 0.9, "one logged step; see train.log_every", ha="center", transform=axis.transAxes, fontsize=8
            )
        legend_below(axis)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, folder / "curves.png")


def _draw_scores(axis: Any, lines: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    """Plot the accuracy (or NLL of a regression) of training and validation tasks by step, and of test tasks."""
    of_classes = results["accuracy"] is not None
    score, factor = ("accuracy", 100) if of_classes else ("nll", 1)
    test = results["accuracy"]["mean"] if of_classes else results["nll"]
    tasks = split_name(results) if results.get("evaluated_groups") else f"{results['split']} tasks"
    _draw_noisy(axis, lines, score, factor)
    validated = [line for line in lines if "val_nll" in line]
    axis.plot(*_curve(validated, f"val_{score}", factor), "o-", color="C1", ms=4, label="validation tasks")
    axis.axhline(factor * test, color="C3", ls="--", lw=1.2, label=f"{tasks}, best validation")
    axis.set_title("accuracy, %" if of_classes else "NLL, nats per query")


def _draw_spreads(axis: Any, lines: Sequence[Mapping[str, Any]], of_classes: bool) -> None:
    for name, legend in SPREADS.items():
        if any(line[name] is not None for line in lines):  # a regression has no disagreement
            label = legend if of_classes else legend.replace("logits", "means / noise")
            axis.plot(*_curve(lines, name), _style(lines), label=label)
    axis.set(title="spread of the prior")
    logarithmic(axis)


def _curve(lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> tuple[list[int], list[float]]:
    """Return the logged steps and the values of a metric. A missing value is NaN, which leaves a gap in the plot."""
    values = [math.nan if line[name] is None else factor * line[name] for line in lines]
    return [line["step"] for line in lines], values


def _draw_noisy(axis: Any, lines: Sequence[Mapping[str, Any]], name: str, factor: float) -> None:
    """Plot the logged values of a metric in a faint colour, and their running mean."""
    steps, values = _curve(lines, name, factor)
    means = [np.nanmean(values[max(0, end - RUNNING) : end]) for end in range(1, len(values) + 1)]
    axis.plot(steps, values, color="C0", alpha=0.3, label="training tasks of one step")
    axis.plot(steps, means, _style(lines), color="C0", label=f"mean of {RUNNING} logged steps")


def _leave_out_outliers(axis: Any, values: Sequence[float]) -> str:
    """Limit the y axis to values that are not outliers.

    Returns:
        The number of outliers as text for the title, such as "; 3 outside"; '' if there are none.
    """
    if (limits := limits_without_outliers(values)) is None:
        return ""
    axis.set_ylim(*limits)
    outside = sum(not limits[0] <= value <= limits[1] for value in values)
    return f"; {outside} outside"


def limits_without_outliers(values: Sequence[float]) -> tuple[float, float] | None:
    """Return limits of an axis that exclude only outliers; None if there are no outliers."""
    finite = np.array([value for value in values if math.isfinite(value)])
    distances = np.abs(finite - np.median(finite)) if len(finite) else finite
    kept = finite[distances <= REACH * np.median(distances)] if len(finite) else finite
    if len(kept) == len(finite) or np.ptp(kept) == 0:
        return None
    margin = 0.08 * np.ptp(kept)
    return float(kept.min() - margin), float(kept.max() + margin)


def _style(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a line style. A single point gets a marker, since a line would not show it."""
    return "o-" if len(lines) == 1 else "-"


def new_figure(num_panels: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """Create a figure with `rows` rows of `num_panels` panels, and list its axes row by row. Needs no display.

    From then on, the colours "C0", "C1", ... of matplotlib are the colours in COLOURS.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLOURS)
    matplotlib.rcParams["svg.fonttype"] = "none"  # text remains text
    figure = Figure(figsize=(4.2 * num_panels, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, num_panels, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def line_style(number: int) -> dict[str, str]:
    """Return colour and style of line number `number`. Lines beyond the number of colours are dashed."""
    return {"color": f"C{number % len(COLOURS)}", "linestyle": "-" if number < len(COLOURS) else "--"}


def logarithmic(axis: Any) -> None:
    """Make the y axis logarithmic, with plain numbers at its ticks.

    If the axis spans less than one power of ten, all ticks between powers of ten have numbers. If the axis spans one to
    two powers, only the ticks at 2 and 5 have numbers.
    """
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter("{x:g}")
    digits = "123456789" if high < 10 * low else "25" if high < 100 * low else ""
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}" if f"{value:.0e}"[0] in digits else "")


def legend_below(axis: Any, columns: int = 2) -> None:
    """Draw the legend below the label of the x axis, where it covers no data."""
    from matplotlib.transforms import ScaledTranslation

    below = axis.transAxes + ScaledTranslation(0, -36 / 72, axis.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0}
    axis.legend(frameon=False, fontsize=8, ncols=columns, **place)


def save_figure(figure: Any, path: Path) -> Path:
    """Save a figure as PNG, and in the vector formats that METABAYES_PLOTS names. Return the path as given."""
    for kind in ("png", *plot_formats()):
        write_atomically(path.with_suffix(f".{kind}"), partial(figure.savefig, format=kind, dpi=110))
    return path
