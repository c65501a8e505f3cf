"""Plot of experiments.predictive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.diagnostics.predictive import Discrepancy
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure, save_figure

Checks = dict[str, dict[str, Discrepancy]]
NUM_TASKS = 16  # number of tasks with a box in the plot


def draw(checks: Checks, path: Path) -> Path:
    """Plot the replicated and the observed NLL of single tasks under posterior and prior, and p-values of all tasks."""
    figure, axes = new_figure(len(checks) + 1)
    for axis, (name, discrepancies) in zip(axes, checks.items(), strict=False):
        nll = discrepancies["nll"]
        order = nll.observed[:NUM_TASKS].argsort().cpu()
        axis.boxplot(nll.replicated[:, order].cpu().numpy(), whis=(5, 95), showfliers=False, widths=0.6)
        axis.plot(np.arange(1, len(order) + 1), nll.observed[order].cpu(), "o", color="C3", ms=4, label="observed")
        axis.set(xlabel="tasks, by their NLL", ylabel="NLL, nats per query", xticks=[])
        axis.set_title(f"labels drawn from the {name} (boxes, whiskers 5 to 95%)", fontsize=9)
        legend_below(axis)
    _draw_p_values(axes[-1], checks)
    return save_figure(figure, path)


def _draw_p_values(axis: Any, checks: Checks) -> None:
    for name, discrepancies in checks.items():
        axis.hist(
            discrepancies["nll"].p_values.cpu().numpy(), np.linspace(0, 1, 11), density=True, alpha=0.5, label=name
        )
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="calibrated")
    axis.set(xlabel="p-value of the NLL: 0 overconfident, 1 underconfident", ylabel="density over tasks")
    legend_below(axis)
