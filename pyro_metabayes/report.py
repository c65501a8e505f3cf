"""Tables and pictures of runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.checkpoint import write_atomically

Row = Mapping[str, str]
COLLAPSE = {True: "collapsed", False: "alive", None: "-"}


def number(value: float | None, digits: int = 3) -> str:
    """A figure of a table; a dash for null."""
    return "-" if value is None else f"{value:.{digits}f}"


def per_cent(mean: float, ci95: float | None = None) -> str:
    """72.7 +- 0.6 of a fraction and its interval."""
    return f"{100 * mean:.1f}" + ("" if ci95 is None else f" +- {100 * ci95:.1f}")


def result_row(results: Mapping[str, Any]) -> dict[str, str]:
    """One run as a row: what the table of `experiments.run` shows."""
    bound = results["elbo"] is not None
    return {
        "guide": results["guide"],
        "data": f"{results['data']} {results['split']}",
        "task": f"{results['way']}-way {results['shot']}-shot, {results['query']} queries",
        "accuracy %": per_cent(**results["accuracy"]),
        "NLL": number(results["nll"]),
        "joint NLL": number(results["joint_nll"]),
        "ECE": number(results["ece"]),
        "ELBO": number(results["elbo"], 1) if bound else "-",
        "KL": number(results["kl"], 1),
        "prior": COLLAPSE[results["collapsed"]],
        "transductive": "yes" if results["transductive"] else "no",
    }


def text_table(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = [columns, *([row[name] for name in columns] for row in rows)]
    text = ["  ".join(cell.ljust(widths[name]) for name, cell in zip(columns, line, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in text)


def markdown_table(rows: Sequence[Row]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_table(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def draw_curves(folder: Path, title: str) -> Path:
    """curves.png: loss, accuracy and the collapse figures of metrics.jsonl over the steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    panels: list[tuple[str, dict[str, str]]] = [
        ("loss, nats a task", {"loss": "loss"}),
        ("accuracy, % (tasks of the step)", {"accuracy": "posterior predictive"}),
    ]
    if any(line["prior_sd"] is not None for line in lines):
        panels.append(("spread of the prior", {"relative_sd": "sd / mean of weights", "logit_sd": "sd of logits", "disagreement": "disagreement"}))
    figure, axes = new_figure(len(panels))
    for axis, (label, curves) in zip(axes, panels, strict=True):
        for name, legend in curves.items():
            factor = 100 if name == "accuracy" else 1
            values = [math.nan if line[name] is None else factor * line[name] for line in lines]  # null: skipped
            axis.plot([line["step"] for line in lines], values, label=legend)
        axis.set(xlabel="meta-training step", title=label)
        if len(curves) > 1:
            axis.set_yscale("log")
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, folder / "curves.png")


def new_figure(num_panels: int) -> tuple[Any, list[Any]]:
    """A figure with panels side by side; drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * num_panels, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, num_panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    return path
