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
from pyro_metabayes.storage.checkpoint import write_atomically

SPREADS = {"relative_sd": "sd / mean of weights", "logit_sd": "sd of logits", "disagreement": "disagreement"}
RUNNING = 10  # logged steps of a running mean
REACH = 20  # a value is an outlier if it is farther from the median than this many median distances
VECTOR = ("pdf", "svg")
FORMATS = "METABAYES_PLOTS"  # environment variable: vector formats in which plots are saved too, such as pdf,svg
# Okabe and Ito (2008), "Color Universal Design": distinct for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")


def plot_formats() -> list[str]:
    """The vector formats in which plots are saved beside PNG.

    Raises:
        UsageError: METABAYES_PLOTS names another format.
    """
    formats = [name.strip() for name in os.environ.get(FORMATS, "").split(",") if name.strip()]
    if others := [name for name in formats if name not in VECTOR]:
        raise UsageError(f"expected {FORMATS} to be {', '.join(VECTOR)} or both, got '{others[0]}'")
    return formats


def draw_curves(folder: Path, title: str, results: Mapping[str, Any]) -> Path:
    """curves.png: loss, accuracy (or NLL) with the test score, and collapse metrics against the step."""
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
    """Accuracy, or NLL of a regression: of the training and validation tasks by step, and of the test tasks."""
    of_classes = results["accuracy"] is not None
    score, factor = ("accuracy", 100) if of_classes else ("nll", 1)
    test = results["accuracy"]["mean"] if of_classes else results["nll"]
    _draw_noisy(axis, lines, score, factor)
    validated = [line for line in lines if "val_nll" in line]
    axis.plot(*_curve(validated, f"val_{score}", factor), "o-", color="C1", ms=4, label="validation tasks")
    axis.axhline(factor * test, color="C3", ls="--", lw=1.2, label=f"{results['split']} tasks, best validation")
    axis.set_title("accuracy, %" if of_classes else "NLL, nats per query")


def _draw_spreads(axis: Any, lines: Sequence[Mapping[str, Any]], of_classes: bool) -> None:
    for name, legend in SPREADS.items():
        if any(line[name] is not None for line in lines):  # a regression has no disagreement
            label = legend if of_classes else legend.replace("logits", "means / noise")
            axis.plot(*_curve(lines, name), _style(lines), label=label)
    axis.set(title="spread of the prior")
    logarithmic(axis)


def _curve(lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> tuple[list[int], list[float]]:
    """Steps and values; NaN, which leaves a gap in the plot, for a step without a value."""
    values = [math.nan if line[name] is None else factor * line[name] for line in lines]
    return [line["step"] for line in lines], values


def _draw_noisy(axis: Any, lines: Sequence[Mapping[str, Any]], name: str, factor: float) -> None:
    """The values of the logged steps in a faint colour, and running means."""
    steps, values = _curve(lines, name, factor)
    means = [np.nanmean(values[max(0, end - RUNNING) : end]) for end in range(1, len(values) + 1)]
    axis.plot(steps, values, color="C0", alpha=0.3, label="training tasks of one step")
    axis.plot(steps, means, _style(lines), color="C0", label=f"mean of {RUNNING} logged steps")


def _leave_out_outliers(axis: Any, values: Sequence[float]) -> str:
    """Limit the axis of y to the values that are no outliers; returns a remark for the title, '' without outliers."""
    if (limits := limits_without_outliers(values)) is None:
        return ""
    axis.set_ylim(*limits)
    outside = sum(not limits[0] <= value <= limits[1] for value in values)
    return f"; {outside} outside"


def limits_without_outliers(values: Sequence[float]) -> tuple[float, float] | None:
    """Limits of an axis that hold all values but outliers; None if there are no outliers."""
    finite = np.array([value for value in values if math.isfinite(value)])
    distances = np.abs(finite - np.median(finite)) if len(finite) else finite
    kept = finite[distances <= REACH * np.median(distances)] if len(finite) else finite
    if len(kept) == len(finite) or np.ptp(kept) == 0:
        return None
    margin = 0.08 * np.ptp(kept)
    return float(kept.min() - margin), float(kept.max() + margin)


def _style(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line style; with markers for a single point, which would be invisible."""
    return "o-" if len(lines) == 1 else "-"


def new_figure(num_panels: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure with `rows` rows of `num_panels` panels, and its axes row by row; needs no display.

    The colours "C0", "C1", ... are those of COLOURS from then on.
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
    """Colour and style of the line of a row; rows beyond the number of colours are dashed."""
    return {"color": f"C{number % len(COLOURS)}", "linestyle": "-" if number < len(COLOURS) else "--"}


def logarithmic(axis: Any) -> None:
    """A logarithmic axis of y whose ticks are plain numbers; those between powers of ten too, if it spans only one."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:.3g}" if high < 10 * low else "")


def legend_below(axis: Any, columns: int = 2) -> None:
    """A legend below the label of the axis of x, where it covers no data."""
    from matplotlib.transforms import ScaledTranslation

    below = axis.transAxes + ScaledTranslation(0, -36 / 72, axis.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0}
    axis.legend(frameon=False, fontsize=8, ncols=columns, **place)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a PNG file, and beside it the vector formats of METABAYES_PLOTS."""
    for kind in ("png", *plot_formats()):
        write_atomically(path.with_suffix(f".{kind}"), partial(figure.savefig, format=kind, dpi=110))
    return path
