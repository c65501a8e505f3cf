"""Tables of experiments.gold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.gaps import COUNTS, Gaps
from pyro_metabayes.diagnostics.gold import Gold
from pyro_metabayes.evaluation.intervals import Estimate
from pyro_metabayes.evidence.importance import TRUSTED_K
from pyro_metabayes.exact.convergence import CONVERGED_R_HAT, SUFFICIENT_SIZE
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.prediction.moments import pooled_error
from pyro_metabayes.storage.checkpoint import write_atomically

POSTERIORS = {"support": "given support", "query": "given query", "all": "given support, query"}
CRITERION = f"R-hat >= {CONVERGED_R_HAT}, or bulk or tail ESS <= {SUFFICIENT_SIZE}"
Row = dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Metrics of each task for one guide and one target.

    Args:
        labels: the target, i.e. the labels that the posteriors are given: support, query or all.
        gaps: approximation gap, amortization gap and importance sampling.
        gold: draws of NUTS and their diagnostics.
        scores: scores of the guide.
        of_gold: scores of NUTS.
        of_means: scores of class means; {} without class means.
        transductive: whether the guide is transductive.
        seconds: CPU time of the comparison.
        kl_weight: the KL weight of the training, as a cell of a table.
    """

    labels: str
    gaps: Gaps
    gold: Gold
    scores: Mapping[str, Tensor]
    of_gold: Mapping[str, Tensor]
    of_means: Mapping[str, Tensor]
    transductive: bool
    seconds: float
    kl_weight: str = "-"


Comparisons = Mapping[str, Sequence[Comparison]]  # from the name of a run to one comparison per target


def interval(values: Tensor, digits: int = 1, factor: float = 1, error: Tensor | None = None) -> str:
    """Format the mean over tasks and its 95% interval, such as "72.7 +- 0.6".

    Args:
        values: values [tasks].
        digits: number of decimals.
        factor: factor of the values.
        error: Monte-Carlo standard errors [tasks], which are added in quadrature, or None.
    """
    estimate = Estimate.over_tasks(factor * as_double(values))
    width = estimate.ci95.item()
    if error is not None:
        width = math.hypot(width, 1.96 * pooled_error(as_double(error)))
    return f"{estimate.mean.item():.{digits}f} +- {width:.{digits}f}"


def prediction_row(run: str, comparison: Comparison) -> Row:
    """Return one row of the table of predictions given the support set.

    The row has the scores of the guide, of NUTS (gold) and of class means, and the paired difference gold - guide.
    """
    row = {"run": run, "transductive": "yes" if comparison.transductive else "no"}
    titles = {
        "accuracy": ("accuracy %", 1, 100),
        "mse": ("MSE", 3, 1),
        "nll": ("NLL", 3, 1),
    }
    for name, (title, digits, factor) in titles.items():
        if name in comparison.scores:
            row[f"{title}, guide"] = interval(comparison.scores[name], digits, factor)
            row[f"{title}, gold"] = interval(comparison.of_gold[name], digits, factor)
            if name in comparison.of_means:
                row[f"{title}, class means"] = interval(comparison.of_means[name], digits, factor)
            row[f"{title}, gold - guide"] = interval(comparison.of_gold[name] - comparison.scores[name], digits, factor)
    return row


def gap_row(run: str, comparison: Comparison) -> Row:
    """Return one row of the table of gaps: evidence, ELBO, approximation and amortization gap, in nats per task.

    The ELBO has KL weight 1. The KL weight of the training has a column of its own.
    """
    gaps = comparison.gaps
    return {
        "run": run,
        "posterior of w": POSTERIORS[comparison.labels],
        "log evidence": interval(gaps.evidence, error=gaps.evidence_error),
        "KL weight": comparison.kl_weight,
        "ELBO": interval(gaps.elbo),
        "best ELBO of the family": interval(gaps.best_elbo),
        "approximation gap": interval(gaps.approximation_gap, 2, error=gaps.evidence_error),
        "amortization gap": interval(gaps.amortization_gap, 2),
        "KL(gold, q)": interval(gaps.kl_from_gold, error=gaps.evidence_error),
        "sd of q / gold": f"{gaps.sd_ratio.mean():.2f}",
    }


def trust_row(run: str, comparison: Comparison) -> Row:
    """Return one row of the table of diagnostics of NUTS and of importance sampling."""
    gaps, gold = comparison.gaps, comparison.gold
    last = gaps.best_bounds[-1]
    return {
        "run": run,
        "posterior of w": POSTERIORS[comparison.labels],
        "R-hat, median (largest)": f"{gold.r_hat.median():.3f} ({gold.r_hat.max():.3f})",
        "bulk ESS, log joint (least of a weight)": _sizes(gold),
        "least tail ESS": f"{gold.least_tail_ess.mean():.0f}",
        "converged": f"{int(gold.converged.sum())} of {len(gold.r_hat)}",
        "bridge error": f"{gaps.evidence_error.square().mean().sqrt():.2f}",
        "divergences": f"{gold.divergences.max():.0f}",
        "Pareto k of q, median": f"{gaps.pareto_k.median():.2f}",
        f"k <= {TRUSTED_K}, q": _share(gaps.pareto_k),
        f"k <= {TRUSTED_K}, best of family": _share(gaps.best_pareto_k),
        f"evidence - bound of {COUNTS[len(gaps.best_bounds) - 1]} draws of the best": interval(gaps.evidence - last, 2),
        "CPU s": f"{comparison.seconds:.0f}",
    }


def _sizes(gold: Gold) -> str:
    return f"{gold.ess.mean():.0f} ({gold.least_ess.mean():.0f}) of {len(gold.w)}"


def unconverged(comparisons_by_run: Comparisons) -> list[str]:
    """Return a note for each run and target with tasks whose NUTS chains have not converged."""
    lines = []
    for run, comparisons in comparisons_by_run.items():
        for comparison in comparisons:
            bad = int((~comparison.gold.converged).sum())
            if bad:
                tasks = f"of {bad} of {len(comparison.gold.r_hat)} tasks, {POSTERIORS[comparison.labels]}"
                remedy = "increase warmup and draws"
                lines.append(f"note: {run}: chains {tasks}, have not converged ({CRITERION}); {remedy}")
    return lines


def _share(k: Tensor) -> str:
    return f"{100 * as_double(k <= TRUSTED_K).mean():.0f}%"


def pages(comparisons_by_run: Comparisons) -> tuple[str, str, list[Row]]:
    """Return the tables as text for the terminal, as the page table.md, and as the rows of table.csv.

    A row of table.csv has the cells of all three tables; those of predictions are empty for targets with query labels.
    """
    pairs = [(run, comparison) for run, comparisons in comparisons_by_run.items() for comparison in comparisons]
    of_predictions = [prediction_row(*pair) if pair[1].labels == "support" else {} for pair in pairs]
    of_gaps, of_trust = [gap_row(*pair) for pair in pairs], [trust_row(*pair) for pair in pairs]
    predictions = [row for row in of_predictions if row]
    parts = [part for part in (predictions, of_gaps, of_trust) if part]
    text = "\n\n".join(text_table(part, keys=1 if part is predictions else 2) for part in parts)
    page = "\n\n".join(map(markdown_table, parts))
    empty = dict.fromkeys((title for row in predictions for title in row), "")
    rows = [empty | row | gaps | trust for row, gaps, trust in zip(of_predictions, of_gaps, of_trust, strict=True)]
    return text, f"{page}\n", rows


def write_tasks(path: Path, comparisons_by_run: Comparisons) -> None:
    """Write all metrics of all tasks to an .npz file, as arrays named RUN/TARGET/METRIC."""
    arrays: dict[str, np.ndarray] = {}
    for run, comparisons in comparisons_by_run.items():
        for comparison in comparisons:
            metrics = {**vars(comparison.gaps), **{f"guide_{name}": value for name, value in comparison.scores.items()}}
            metrics |= {f"gold_{name}": value for name, value in comparison.of_gold.items()}
            metrics |= {
                name: getattr(comparison.gold, name)
                for name in ("r_hat", "ess", "least_ess", "least_tail_ess", "divergences")
            }
            arrays |= {f"{run}/{comparison.labels}/{name}": value.cpu().numpy() for name, value in metrics.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, write)
