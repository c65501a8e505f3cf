"""The pictures of experiments.calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_metabayes.diagnostics.calibration import LEVELS, Estimate, Reliability, reliability
from pyro_metabayes.diagnostics.sbc import Ranks, Uniformity
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure

BINS = 20


def draw(figures: Mapping[str, Tensor], unseen: Mapping[str, Tensor], path: Path) -> Path:
    """Reliability and prediction sets of classes, or intervals of numbers; entropy of known and unseen classes."""
    figure, axes = new_figure(("bins" in figures) + 1 + bool(unseen))
    panels = iter(axes)
    if "bins" in figures:
        _draw_reliability(next(panels), reliability(figures["bins"]))
    _draw_coverage(next(panels), figures)
    if unseen:
        _draw_entropy(next(panels), unseen)
    return save_figure(figure, path)


def _draw_reliability(axis: Any, found: Reliability) -> None:
    some = found.share > 0
    confidence, share, accuracy, spread = (
        its[some].numpy() for its in (found.confidence, found.share, found.accuracy.mean, found.accuracy.ci95)
    )
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    axis.bar(confidence, share, width=0.03, color="C0", alpha=0.25, label="share of queries")
    axis.errorbar(confidence, accuracy, yerr=spread, fmt="o-", ms=4, capsize=2)
    ece = f"ECE {100 * found.ece.mean:.1f} +- {100 * found.ece.ci95:.1f}%"
    axis.set(xlabel="probability of the answer", ylabel="share of right answers", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.set_title(f"reliability, {ece}", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _draw_coverage(axis: Any, figures: Mapping[str, Tensor]) -> None:
    coverage = Estimate.over_tasks(figures["coverage"])
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    if "mass" in figures:
        axis.plot(LEVELS, figures["mass"].mean(0).numpy(), "s:", color="C1", ms=3, label="probability in the sets")
    mean, spread = coverage.mean.numpy(), coverage.ci95.numpy()
    axis.errorbar(LEVELS, mean, yerr=spread, fmt="o-", ms=4, capsize=2, label="labels inside")
    axis.set(xlabel="level", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.set_title("prediction sets" if "mass" in figures else "central intervals of the predictive", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _draw_entropy(axis: Any, unseen: Mapping[str, Tensor]) -> None:
    auroc = Estimate.over_tasks(unseen["auroc"])
    top = max(unseen[name].max().item() for name in ("known", "unseen"))
    for name in ("known", "unseen"):
        axis.hist(unseen[name].numpy(), np.linspace(0, top, 25), density=True, alpha=0.5, label=f"{name} classes")
    axis.set(xlabel="mean entropy of a task's queries, nats", ylabel="density over tasks")
    axis.set_title(f"AUROC of single queries {auroc.mean:.3f} +- {auroc.ci95:.3f}", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def draw_sbc(tested: Mapping[str, tuple[Ranks, Uniformity]], path: Path) -> Path:
    """A row for each posterior: ECDFs against their band, and the histogram of the least uniform ranks."""
    figure, axes = new_figure(2, rows=len(tested))
    for row, (name, (ranks, found)) in enumerate(tested.items()):
        _draw_ecdf(axes[2 * row], ranks, found, name)
        _draw_histogram(axes[2 * row + 1], ranks, found)
    return save_figure(figure, path)


def _draw_ecdf(axis: Any, ranks: Ranks, found: Uniformity, name: str) -> None:
    share = np.arange(1, ranks.num_draws + 1) / (ranks.num_draws + 1)
    band = f"{100 * (1 - found.rate):g}% of uniform ECDFs"
    lower, upper = found.lower.numpy(), found.upper.numpy()
    axis.fill_between(share, lower, upper, color="grey", alpha=0.25, linewidth=0, label=band)
    for its, difference in zip(ranks.names, found.difference, strict=True):
        axis.plot(share, difference.numpy(), linewidth=1.1, label=its)
    axis.set(xlabel="rank / draws", ylabel="ECDF - uniform")
    axis.set_title(f"{name}: {'flagged' if found.flagged else 'not flagged'}", fontsize=9)
    axis.legend(frameon=False, fontsize=7)


def _draw_histogram(axis: Any, ranks: Ranks, found: Uniformity) -> None:
    """Equal bins of ranks, and what 95% of single bins of uniform ranks hold."""
    worst = int(found.p_values.argmin())
    values, count = ranks.values[worst].numpy(), ranks.values.shape[1]
    edges = np.linspace(0, ranks.num_draws + 1, min(BINS, ranks.num_draws + 1) + 1).round() - 0.5
    held = np.diff(edges) * count / (ranks.num_draws + 1)
    spread = 1.96 * np.sqrt(held * (1 - held / count))
    axis.hist(values, edges, color="C0", alpha=0.6)
    axis.stairs(held + spread, edges, baseline=held - spread, color="grey", alpha=0.35, fill=True)
    axis.set(xlabel="rank", ylabel="tasks")
    axis.set_title(f"ranks of {ranks.names[worst]}, p = {found.p_values[worst]:.4f}", fontsize=9)
