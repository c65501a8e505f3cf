"""Plots of experiments.calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_metabayes.diagnostics.calibration import LEVELS, Reliability, reliability
from pyro_metabayes.diagnostics.sbc import Ranks, Uniformity
from pyro_metabayes.evaluation.intervals import Estimate
from pyro_metabayes.experiments.runs.plots import legend_below, line_style, new_figure, save_figure

BINS = 20


def draw(metrics: Mapping[str, Tensor], unseen: Mapping[str, Tensor], path: Path) -> Path:
    """Plot one panel per calibration metric that is defined for the likelihood, and save the plot.

    Classes have reliability and prediction sets. Numbers have intervals. Numbers and ordered classes have the
    probability integral transform (PIT). The entropy is plotted if there are queries of unseen classes.

    Args:
        metrics: calibration metrics of each task, by name.
        unseen: mean entropies of queries of known and of unseen classes, and AUROC, of each task; {} without unseen
            classes.
        path: file of the plot.
    """
    figure, axes = new_figure(max(1, sum(name in metrics for name in ("bins", "coverage", "pit")) + bool(unseen)))
    panels = iter(axes)
    if "bins" in metrics:
        _draw_reliability(next(panels), reliability(metrics["bins"]))
    if "coverage" in metrics:
        _draw_coverage(next(panels), metrics)
    if "pit" in metrics:
        _draw_pit(next(panels), metrics["pit"])
    if unseen:
        _draw_entropy(next(panels), unseen)
    return save_figure(figure, path)


def _draw_reliability(axis: Any, diagram: Reliability) -> None:
    occupied = diagram.share > 0
    confidence, share, accuracy, spread = (
        values[occupied].numpy()
        for values in (diagram.confidence, diagram.share, diagram.accuracy.mean, diagram.accuracy.ci95)
    )
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="calibrated")
    axis.bar(confidence, share, width=0.03, color="C0", alpha=0.25, label="share of queries")
    axis.errorbar(confidence, accuracy, yerr=spread, fmt="o-", ms=4, capsize=2)
    ece = f"ECE {100 * diagram.ece.mean:.1f} +- {100 * diagram.ece.ci95:.1f}%"
    axis.set(
        xlabel="probability of the prediction", ylabel="share of right predictions", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axis.set_title(f"reliability, {ece}", fontsize=9)
    legend_below(axis)


def _draw_coverage(axis: Any, metrics: Mapping[str, Tensor]) -> None:
    coverage = Estimate.over_tasks(metrics["coverage"])
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="calibrated")
    if "mass" in metrics:
        axis.plot(LEVELS, metrics["mass"].mean(0).numpy(), "s:", color="C1", ms=3, label="probability in the sets")
    mean, spread = coverage.mean.numpy(), coverage.ci95.numpy()
    axis.errorbar(LEVELS, mean, yerr=spread, fmt="o-", ms=4, capsize=2, label="labels inside")
    axis.set(xlabel="level", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.set_title("prediction sets" if "mass" in metrics else "central intervals of the predictive", fontsize=9)
    legend_below(axis)


def _draw_pit(axis: Any, shares: Tensor) -> None:
    """Plot a histogram of the probability integral transform (PIT), with intervals over tasks.

    Calibrated predictions follow the dashed line.

    Args:
        axis: axis of the plot.
        shares: share of the labels of each task in each bin [tasks, bins].
    """
    number, estimate = shares.shape[1], Estimate.over_tasks(shares)
    centres = (np.arange(number) + 0.5) / number
    axis.bar(centres, estimate.mean.numpy(), 1 / number, yerr=estimate.ci95.numpy(), color="C0", alpha=0.6, capsize=2)
    axis.axhline(1 / number, color="black", linewidth=0.8, linestyle="--", label="calibrated")
    legend_below(axis)
    axis.set(xlabel="PIT", ylabel="share of labels", xlim=(0, 1))
    axis.set_title("probability integral transform", fontsize=9)


def _draw_entropy(axis: Any, unseen: Mapping[str, Tensor]) -> None:
    auroc = Estimate.over_tasks(unseen["auroc"])
    top = max(unseen[name].max().item() for name in ("known", "unseen"))
    for name in ("known", "unseen"):
        axis.hist(unseen[name].numpy(), np.linspace(0, top, 25), density=True, alpha=0.5, label=f"{name} classes")
    axis.set(xlabel="mean entropy of a task's queries, nats", ylabel="density over tasks")
    axis.set_title(f"AUROC of single queries {auroc.mean:.3f} +- {auroc.ci95:.3f}", fontsize=9)
    legend_below(axis)


def draw_sbc(results: Mapping[str, tuple[Ranks, Uniformity]], path: Path) -> Path:
    """Plot the ranks of simulation-based calibration, with one row of panels per posterior, and save the plot.

    The left panel of a row shows the empirical distribution functions (ECDFs) of the ranks, minus that of uniform
    ranks. A band contains most ECDFs of uniform ranks. The right panel shows the histogram of the ranks with the
    smallest p-value.
    """
    figure, axes = new_figure(2, rows=len(results))
    for row, (name, (ranks, tested)) in enumerate(results.items()):
        _draw_ecdf(axes[2 * row], ranks, tested, name)
        _draw_histogram(axes[2 * row + 1], ranks, tested)
    return save_figure(figure, path)


def _draw_ecdf(axis: Any, ranks: Ranks, tested: Uniformity, name: str) -> None:
    share = np.arange(1, ranks.num_draws + 1) / (ranks.num_draws + 1)
    band = f"{100 * (1 - tested.rate):g}% of uniform ECDFs"
    lower, upper = tested.lower.numpy(), tested.upper.numpy()
    axis.fill_between(share, lower, upper, color="grey", alpha=0.25, linewidth=0, label=band)
    for number, (weight, difference) in enumerate(zip(ranks.names, tested.difference, strict=True)):
        axis.plot(share, difference.numpy(), linewidth=1.1, label=weight, **line_style(number))
    axis.set(xlabel="rank / draws", ylabel="ECDF - uniform")
    axis.set_title(f"{name}: {'flagged' if tested.flagged else 'not flagged'}", fontsize=9)
    legend_below(axis)


def _draw_histogram(axis: Any, ranks: Ranks, tested: Uniformity) -> None:
    """Plot a histogram of the ranks with the smallest p-value, and the central 95% of counts of uniform ranks."""
    worst = int(tested.p_values.argmin())
    values, count = ranks.values[worst].numpy(), ranks.values.shape[1]
    edges = np.linspace(0, ranks.num_draws + 1, min(BINS, ranks.num_draws + 1) + 1).round() - 0.5
    expected = np.diff(edges) * count / (ranks.num_draws + 1)
    spread = 1.96 * np.sqrt(expected * (1 - expected / count))
    axis.hist(values, edges, color="C0", alpha=0.6)
    axis.stairs(expected + spread, edges, baseline=expected - spread, color="grey", alpha=0.35, fill=True)
    axis.set(xlabel="rank", ylabel="tasks")
    axis.set_title(f"ranks of {ranks.names[worst]}, p = {tested.p_values[worst]:.4f}", fontsize=9)
