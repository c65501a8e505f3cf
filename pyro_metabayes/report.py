"""Tables and pictures of runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.checkpoint import write_atomically

Row = Mapping[str, str]
SPREADS = {"relative_sd": "sd / mean of weights", "logit_sd": "sd of logits", "disagreement": "disagreement"}
COLLAPSE = {True: "collapsed", False: "alive", None: "-"}


def number(value: float | None, digits: int = 3) -> str:
    """A figure of a table; a dash for null."""
    return "-" if value is None else f"{value:.{digits}f}"


def per_cent(mean: float, ci95: float | None = None) -> str:
    """72.7 +- 0.6 of a fraction and its interval."""
    return f"{100 * mean:.1f}" + ("" if ci95 is None else f" +- {100 * ci95:.1f}")


def task_name(way: int, shot: int, base_classes: int | None = None) -> str:
    """5-way 1-shot, 64+5-way 1-shot beside base classes; a regression (way 1) has points of support."""
    beside = f"{base_classes}+" if base_classes else ""
    return f"{beside}{way}-way {shot}-shot" if way > 1 else f"{shot} support points"


def queries_of(task: Mapping[str, Any]) -> str:
    """15 a class; 55/5/5/5/5 where they differ; Dirichlet(2) where they are drawn."""
    if task["query_counts"]:
        return "/".join(map(str, task["query_counts"]))
    if task["query_concentration"]:
        return f"Dirichlet({task['query_concentration']:g})"
    return str(task["query"])


def result_row(results: Mapping[str, Any]) -> dict[str, str]:
    """One run as a row: what the table of `experiments.run` shows."""
    of_classes = results["accuracy"] is not None
    task, queries = (
        task_name(results["way"], results["shot"], results.get("base_classes")),
        f"{queries_of(results)} queries",
    )
    if results.get("base_query"):
        queries += f" + {results['base_query']}"
    return {
        "guide": results["guide"],
        "data": f"{results['data']} {results['split']}",
        "task": f"{task}, {queries}",
        **_shares(results),
        "NLL": number(results["nll"]),
        "joint NLL": number(results["joint_nll"]),
        **({"ECE": number(results["ece"])} if of_classes else {"coverage 90%": number(results["coverage90"])}),
        "ELBO": number(results["elbo"], 1),
        "KL": number(results["kl"], 1 if of_classes else 3),
        "prior": COLLAPSE[results["collapsed"]],
        "transductive": "yes" if results["transductive"] else "no",
    }


def _shares(results: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy; of learning without forgetting its three, and that of base classes among all; RMSE of a regression."""
    if results["accuracy"] is None:
        return {"RMSE": number(results["rmse"])}
    if results.get("novel") is None:
        return {"accuracy %": per_cent(**results["accuracy"])}
    names = {"novel %": "novel", "base %": "base", "both %": "both", "base over all %": "base_over_all"}
    return {title: per_cent(**results[name]) for title, name in names.items()}


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


def save_tables(folder: Path, page: str, rows: Sequence[Row]) -> None:
    """table.md, the page, and table.csv, the rows."""
    write_atomically(folder / "table.md", lambda path: path.write_text(page))
    write_atomically(folder / "table.csv", lambda path: path.write_text(csv_table(rows)))


def draw_curves(folder: Path, title: str) -> Path:
    """curves.png: loss, accuracy (or NLL) and the collapse figures of metrics.jsonl over the steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alive = any(line["prior_sd"] is not None for line in lines)
    figure, axes = new_figure(3 if alive else 2)
    _draw_noisy(axes[0], lines, "loss", 1)
    axes[0].set_title("loss, nats a task")
    of_classes = any("val_accuracy" in line for line in lines)
    score, factor, name = ("accuracy", 100, "accuracy, %") if of_classes else ("nll", 1, "NLL, nats a query")
    _draw_noisy(axes[1], lines, score, factor)
    validated = [line for line in lines if "val_nll" in line]
    axes[1].plot(*_curve(validated, f"val_{score}", factor), "o-", color="C1", ms=4, label="validation tasks")
    axes[1].set_title(name)
    axes[1].legend(frameon=False, fontsize=8)
    if alive:
        for name, legend in SPREADS.items():
            if all(line[name] is None for line in lines):
                continue  # a regression takes no decisions
            label = legend if of_classes else legend.replace("logits", "means / noise")
            axes[2].plot(*_curve(lines, name), _style(lines), label=label)
        axes[2].set(title="spread of the prior", yscale="log")
        axes[2].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.set_xlabel("meta-training step")
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, folder / "curves.png")


def _curve(lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> tuple[list[int], list[float]]:
    """Steps and values; a figure that a step does not have is a gap."""
    values = [math.nan if line[name] is None else factor * line[name] for line in lines]
    return [line["step"] for line in lines], values


def _draw_noisy(axis: Any, lines: Sequence[Mapping[str, Any]], name: str, factor: float) -> None:
    """The figure of each logged step, faint, and its mean over the last ten of them."""
    steps, values = _curve(lines, name, factor)
    means = [np.nanmean(values[max(0, end - 10) : end]) for end in range(1, len(values) + 1)]
    axis.plot(steps, values, color="C0", alpha=0.3)
    axis.plot(steps, means, _style(lines), color="C0", label="tasks of the step")


def _style(lines: Sequence[Mapping[str, Any]]) -> str:
    """A single point makes no line."""
    return "o-" if len(lines) == 1 else "-"


def new_figure(num_panels: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure with panels side by side, in one or more rows of as many, row after row; drawn without a display."""
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
