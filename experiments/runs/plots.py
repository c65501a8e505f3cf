"""Plots of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.storage.checkpoint import write_atomically

SPREADS = {"relative_sd": "sd / mean of weights", "logit_sd": "sd of logits", "disagreement": "disagreement"}


def draw_curves(folder: Path, title: str) -> Path:
    """curves.png: loss, accuracy (or NLL) and collapse metrics in metrics.jsonl against the step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alive = any(line["prior_sd"] is not None for line in lines)
    figure, axes = new_figure(3 if alive else 2)
    _draw_noisy(axes[0], lines, "loss", 1)
    axes[0].set_title("loss, nats per task")
    of_classes = any("val_accuracy" in line for line in lines)
    score, factor, name = ("accuracy", 100, "accuracy, %") if of_classes else ("nll", 1, "NLL, nats per query")
    _draw_noisy(axes[1], lines, score, factor)
    validated = [line for line in lines if "val_nll" in line]
    axes[1].plot(*_curve(validated, f"val_{score}", factor), "o-", color="C1", ms=4, label="validation tasks")
    axes[1].set_title(name)
    axes[1].legend(frameon=False, fontsize=8)
    if alive:
        _draw_spreads(axes[2], lines, of_classes)
    for axis in axes:
        axis.set_xlabel("meta-training step")
        if len(lines) == 1:
            axis.text(
                0.5, 0.9, "one logged step; see train.log_every", ha="center", transform=axis.transAxes, fontsize=8
            )
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, folder / "curves.png")


def _draw_spreads(axis: Any, lines: Sequence[Mapping[str, Any]], of_classes: bool) -> None:
    for name, legend in SPREADS.items():
        if any(line[name] is not None for line in lines):  # a regression has no disagreement
            label = legend if of_classes else legend.replace("logits", "means / noise")
            axis.plot(*_curve(lines, name), _style(lines), label=label)
    axis.set(title="spread of the prior", yscale="log")
    axis.legend(frameon=False, fontsize=8)


def _curve(lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> tuple[list[int], list[float]]:
    """Steps and values; NaN, which leaves a gap in the plot, for a step without a value."""
    values = [math.nan if line[name] is None else factor * line[name] for line in lines]
    return [line["step"] for line in lines], values


def _draw_noisy(axis: Any, lines: Sequence[Mapping[str, Any]], name: str, factor: float) -> None:
    """The values of the logged steps in a faint colour, and running means over ten of them."""
    steps, values = _curve(lines, name, factor)
    means = [np.nanmean(values[max(0, end - 10) : end]) for end in range(1, len(values) + 1)]
    axis.plot(steps, values, color="C0", alpha=0.3)
    axis.plot(steps, means, _style(lines), color="C0", label="tasks of the step")


def _style(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line style; with markers for a single point, which would be invisible."""
    return "o-" if len(lines) == 1 else "-"


def new_figure(num_panels: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure with `rows` rows of `num_panels` panels, and its axes row by row; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * num_panels, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, num_panels, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    return path
