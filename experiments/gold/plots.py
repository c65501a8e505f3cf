"""Plot of experiments.gold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_metabayes.diagnostics.gaps import COUNTS
from pyro_metabayes.evaluation.intervals import Estimate
from pyro_metabayes.experiments.gold.tables import POSTERIORS, Comparisons
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure, save_figure

WIDE = 10  # nats; an axis that extends beyond this value is logarithmic except near 0


def draw(comparisons_by_run: Comparisons, path: Path) -> Path:
    """Plot the scores of guide and NUTS, both gaps, and (evidence - lower bound) against the number of draws."""
    figure, axes = new_figure(3)
    figure.set_size_inches(14, max(3.4, 1.2 + 0.42 * len(comparisons_by_run)))
    _draw_scores(axes[0], comparisons_by_run)
    _draw_gaps(axes[1], comparisons_by_run)
    _draw_bounds(axes[2], comparisons_by_run)
    return save_figure(figure, path)


def _draw_scores(axis: Any, comparisons_by_run: Comparisons) -> None:
    inductive = {
        run: comparison
        for run, comparisons in comparisons_by_run.items()
        for comparison in comparisons
        if comparison.labels == "support"
    }
    of_classes = any("accuracy" in comparison.scores for comparison in inductive.values())
    score, factor = ("accuracy", 100) if of_classes else ("mse", 1)
    for height, comparison in enumerate(inductive.values()):
        for scores, colour, shift in ((comparison.scores, "C0", 0.12), (comparison.of_gold, "C1", -0.12)):
            value = Estimate.over_tasks(factor * scores[score])
            axis.errorbar(value.mean.item(), shift - height, xerr=value.ci95.item(), fmt="o", color=colour, capsize=3)
    axis.set(yticks=range(0, -len(inductive), -1), yticklabels=list(inductive), ylim=(0.6 - len(inductive), 0.6))
    axis.plot([], [], "o", color="C0", label="guide")
    axis.plot([], [], "o", color="C1", label="NUTS, given the support set")
    legend_below(axis)
    axis.set_title("accuracy, %" if of_classes else "MSE", fontsize=9)


def _draw_gaps(axis: Any, comparisons_by_run: Comparisons) -> None:
    """Plot the two gaps of each run for the last entry of `targets`, on a logarithmic axis if a gap is large."""
    for height, comparisons in enumerate(comparisons_by_run.values()):
        gaps = comparisons[-1].gaps
        for name, colour, shift in (("approximation_gap", "C2", 0.18), ("amortization_gap", "C3", -0.18)):
            value = Estimate.over_tasks(getattr(gaps, name))
            label = name.replace("_", " ") if height == 0 else None
            axis.barh(
                shift - height, value.mean.item(), 0.34, xerr=value.ci95.item(), color=colour, alpha=0.8, label=label
            )
    axis.set(
        yticks=range(0, -len(comparisons_by_run), -1),
        yticklabels=list(comparisons_by_run),
        ylim=(0.6 - len(comparisons_by_run), 0.6),
    )
    if axis.get_xlim()[1] > WIDE:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=-0.3)
    legend_below(axis)
    axis.set_title(f"gaps, {POSTERIORS[next(iter(comparisons_by_run.values()))[-1].labels]}, nats per task", fontsize=9)


def _draw_bounds(axis: Any, comparisons_by_run: Comparisons) -> None:
    for place, (run, comparisons) in enumerate(comparisons_by_run.items()):
        gaps, colour = comparisons[-1].gaps, f"C{place}"
        counts = COUNTS[: len(gaps.bounds)]
        axis.plot(counts, (gaps.evidence - gaps.bounds).mean(1).numpy(), "o-", color=colour, ms=3, label=run)
        axis.plot(counts, (gaps.evidence - gaps.best_bounds).mean(1).numpy(), "s:", color=colour, ms=3)
    axis.set(xscale="log", xlabel="draws")
    if axis.get_ylim()[1] > WIDE:
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.3)
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("evidence - bound, by number of draws (dotted: best of family)", fontsize=9)
