"""The tables and the picture of experiments.gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.calibration import Estimate
from pyro_metabayes.diagnostics.gaps import COUNTS, Gaps
from pyro_metabayes.diagnostics.gold import Gold
from pyro_metabayes.diagnostics.importance import TRUSTED_K
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, text_table
from pyro_metabayes.storage.checkpoint import write_atomically

POSTERIORS = {"support": "given support", "query": "given query", "all": "given support, query"}
CONVERGED = 1.1  # the largest R-hat of chains that may be trusted
WIDE = 10  # nats from which an axis is linear near 0 alone
Row = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """One guide and one target: figures of each task."""

    labels: str
    gaps: Gaps
    gold: Gold
    scores: Mapping[str, Tensor]
    of_gold: Mapping[str, Tensor]
    transductive: bool
    seconds: float


Found = Mapping[str, Sequence[Measured]]  # by the name of the run


def told(values: Tensor, digits: int = 1, factor: float = 1) -> str:
    """Mean over tasks and its 95% interval."""
    its = Estimate.over_tasks(factor * as_double(values))
    return f"{its.mean.item():.{digits}f} +- {its.ci95.item():.{digits}f}"


def prediction_row(run: str, its: Measured) -> Row:
    """What is predicted from the support set, by the guide and by the exact posterior; differences are paired."""
    row = {"run": run, "transductive": "yes" if its.transductive else "no"}
    named = {
        "accuracy": ("accuracy %", 1, 100),
        "mse": ("MSE", 3, 1),
        "nll": ("NLL", 3, 1),
        "joint_nll": ("joint NLL", 3, 1),
    }
    for name, (title, digits, factor) in named.items():
        if name in its.scores:
            row[f"{title}, guide"] = told(its.scores[name], digits, factor)
            row[f"{title}, gold"] = told(its.of_gold[name], digits, factor)
            row[f"{title}, gold - guide"] = told(its.of_gold[name] - its.scores[name], digits, factor)
    return row


def gap_row(run: str, its: Measured) -> Row:
    gaps = its.gaps
    return {
        "run": run,
        "posterior of w": POSTERIORS[its.labels],
        "log evidence": told(gaps.evidence),
        "ELBO": told(gaps.elbo),
        "best ELBO of the family": told(gaps.best_elbo),
        "approximation gap": told(gaps.approximation_gap, 2),
        "amortization gap": told(gaps.amortization_gap, 2),
        "KL(gold, q)": told(gaps.kl_from_gold),
        "sd of q / gold": f"{gaps.sd_ratio.mean():.2f}",
    }


def trust_row(run: str, its: Measured) -> Row:
    gaps, gold = its.gaps, its.gold
    last = gaps.best_bounds[-1]
    return {
        "run": run,
        "posterior of w": POSTERIORS[its.labels],
        "R-hat, median (largest)": f"{gold.r_hat.median():.3f} ({gold.r_hat.max():.3f})",
        "ESS, log joint (least of a weight)": f"{gold.ess.mean():.0f} ({gold.least_ess.mean():.0f}) of {len(gold.w)}",
        "divergences": f"{gold.divergences.max():.0f}",
        "Pareto k of q, median": f"{gaps.pareto_k.median():.2f}",
        f"k <= {TRUSTED_K}, q; best of family": f"{_share(gaps.pareto_k)}; {_share(gaps.best_pareto_k)}",
        f"evidence - bound of {COUNTS[len(gaps.best_bounds) - 1]} draws of the best": told(gaps.evidence - last, 2),
        "CPU s": f"{its.seconds:.0f}",
    }


def unconverged(found: Found) -> list[str]:
    """A line for each run and target with tasks whose chains have not met."""
    lines = []
    for run, measured in found.items():
        for its in measured:
            bad = int((its.gold.r_hat > CONVERGED).sum())
            if bad:
                tasks = f"of {bad} of {len(its.gold.r_hat)} tasks, {POSTERIORS[its.labels]}"
                lines.append(
                    f"note: {run}: chains {tasks}, have not converged (R-hat > {CONVERGED}); raise warmup and draws"
                )
    return lines


def _share(k: Tensor) -> str:
    return f"{100 * as_double(k <= TRUSTED_K).mean():.0f}%"


def pages(found: Found) -> tuple[str, str, list[Row]]:
    """For the terminal, for table.md, and the rows of table.csv."""
    every = [(run, its) for run, measured in found.items() for its in measured]
    predictions = [prediction_row(run, its) for run, its in every if its.labels == "support"]
    parts = [predictions, [gap_row(*each) for each in every], [trust_row(*each) for each in every]]
    parts = [part for part in parts if part]
    text, page = ("\n\n".join(form(part) for part in parts) for form in (text_table, markdown_table))
    return text, f"{page}\n", [gap | trust for gap, trust in zip(parts[-2], parts[-1], strict=True)]


def write_tasks(path: Path, found: Found) -> None:
    """Every figure of every task, named RUN/TARGET/FIGURE."""
    arrays: dict[str, np.ndarray] = {}
    for run, measured in found.items():
        for its in measured:
            each = {**vars(its.gaps), **{f"guide_{name}": value for name, value in its.scores.items()}}
            each |= {f"gold_{name}": value for name, value in its.of_gold.items()}
            each |= {name: getattr(its.gold, name) for name in ("r_hat", "ess", "least_ess", "divergences")}
            arrays |= {f"{run}/{its.labels}/{name}": value.cpu().numpy() for name, value in each.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def draw(found: Found, path: Path) -> Path:
    """Scores of guide and gold posterior, the two gaps, and how far bounds of more draws are from the evidence."""
    figure, axes = new_figure(3)
    figure.set_size_inches(14, max(3.4, 1.2 + 0.42 * len(found)))
    _draw_scores(axes[0], found)
    _draw_gaps(axes[1], found)
    _draw_bounds(axes[2], found)
    return save_figure(figure, path)


def _draw_scores(axis: Any, found: Found) -> None:
    predicting = {run: its for run, measured in found.items() for its in measured if its.labels == "support"}
    of_classes = any("accuracy" in its.scores for its in predicting.values())
    score, factor = ("accuracy", 100) if of_classes else ("mse", 1)
    for height, its in enumerate(predicting.values()):
        for scores, colour, shift in ((its.scores, "C0", 0.12), (its.of_gold, "goldenrod", -0.12)):
            value = Estimate.over_tasks(factor * scores[score])
            axis.errorbar(value.mean.item(), shift - height, xerr=value.ci95.item(), fmt="o", color=colour, capsize=3)
    axis.set(yticks=range(0, -len(predicting), -1), yticklabels=list(predicting), ylim=(0.6 - len(predicting), 0.6))
    axis.plot([], [], "o", color="C0", label="guide")
    axis.plot([], [], "o", color="goldenrod", label="gold, given the support set")
    axis.legend(frameon=False, fontsize=8)
    axis.set_title("accuracy, %" if of_classes else "MSE", fontsize=9)


def _draw_gaps(axis: Any, found: Found) -> None:
    """Of the last target, on a scale that has room for hundreds of nats and for none."""
    for height, measured in enumerate(found.values()):
        gaps = measured[-1].gaps
        for name, colour, shift in (("approximation_gap", "C2", 0.18), ("amortization_gap", "C3", -0.18)):
            value = Estimate.over_tasks(getattr(gaps, name))
            label = name.replace("_", " ") if height == 0 else None
            axis.barh(
                shift - height, value.mean.item(), 0.34, xerr=value.ci95.item(), color=colour, alpha=0.8, label=label
            )
    axis.set(yticks=range(0, -len(found), -1), yticklabels=list(found), ylim=(0.6 - len(found), 0.6))
    if axis.get_xlim()[1] > WIDE:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=-0.3)
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(f"gaps, {POSTERIORS[next(iter(found.values()))[-1].labels]}, nats a task", fontsize=9)


def _draw_bounds(axis: Any, found: Found) -> None:
    for place, (run, measured) in enumerate(found.items()):
        gaps, colour = measured[-1].gaps, f"C{place}"
        counts = COUNTS[: len(gaps.bounds)]
        axis.plot(counts, (gaps.evidence - gaps.bounds).mean(1).numpy(), "o-", color=colour, ms=3, label=run)
        axis.plot(counts, (gaps.evidence - gaps.best_bounds).mean(1).numpy(), "s:", color=colour, ms=3)
    axis.set(xscale="log", xlabel="draws")
    if axis.get_ylim()[1] > WIDE:
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.3)
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("evidence - bound of so many draws (dotted: best of family)", fontsize=9)
