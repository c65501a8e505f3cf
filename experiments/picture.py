"""The picture of compared runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import Run
from pyro_metabayes.report import new_figure, save_figure
from pyro_metabayes.scores import ci95_of

Groups = Mapping[tuple[str, str], Sequence[Run]]


def draw(groups: Groups, path: Path) -> None:
    """Accuracy and NLL of every row with its interval, and how alive its prior stayed in training."""
    alive = {label: curve for (_, label), runs in groups.items() if (curve := spread_in_training(runs))}
    figure, axes = new_figure(3 if alive else 2)
    figure.set_size_inches(2.4 + 2.9 * len(axes), max(2.8, 1.4 + 0.34 * len(groups)))
    _draw_scores(axes[0], groups, "accuracy", 100)
    _draw_scores(axes[1], groups, "nll", 1)
    axes[0].set_title("accuracy, %", fontsize=10)
    axes[1].set_title("NLL, nats a query", fontsize=10)
    several = len({task for task, _ in groups}) > 1
    axes[0].set_yticklabels([f"{label}\n{task}" if several else label for task, label in groups])
    axes[1].set_yticklabels([])
    if alive:
        for label, (steps, spread) in alive.items():
            axes[2].plot(steps, spread, label=label)
        axes[2].set(yscale="log", xlabel="meta-training step")
        axes[2].set_title("is the prior alive? sd of logits under it", fontsize=10)
        axes[2].legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.tick_params(labelsize=8)
    figure.suptitle("means over tasks of unseen classes, 95% intervals; hollow: transductive", fontsize=9)
    save_figure(figure, path)


def _draw_scores(axis: Any, groups: Groups, score: str, factor: float) -> None:
    for height, runs in enumerate(groups.values()):
        if score not in runs[0].per_task:
            continue
        values = factor * np.concatenate([run.per_task[score] for run in runs])
        fill = "white" if runs[0].results["transductive"] else "C0"
        axis.errorbar(values.mean(), -height, xerr=ci95_of(values), fmt="o", color="C0", mfc=fill, capsize=3)
    axis.set(yticks=range(0, -len(groups), -1))


def spread_in_training(runs: Sequence[Run]) -> tuple[list[int], list[float]] | None:
    """Steps and logit_sd of the first seed that was trained with a prior; an evaluation has no training."""
    for run in runs:
        file = run.folder / "metrics.jsonl"
        if run.results["logit_sd"] is not None and file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            known = [line for line in lines if line["logit_sd"] is not None]
            return [line["step"] for line in known], [line["logit_sd"] for line in known]
    return None
