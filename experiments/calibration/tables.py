"""Table of experiments.calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pyro_metabayes.diagnostics.calibration import LEVELS, reliability
from pyro_metabayes.diagnostics.sbc import Ranks, Uniformity
from pyro_metabayes.evaluation.intervals import Estimate

TABLE_LEVELS = (0.5, 0.9, 0.95)  # levels in the table; the plot shows all of LEVELS
AT_LEVELS = ("coverage", "size", "mass")  # metrics with one value per level
Cell = tuple[str, str]  # name and value
SbcResults = dict[str, tuple[Ranks, Uniformity]]


@dataclass(frozen=True)
class Report:
    """Results of experiments.calibration; a result that is not defined for the run is {}.

    Args:
        metrics: calibration metrics of each task, by name.
        unseen: mean entropies of queries of known and of unseen classes, and AUROC, of each task.
        sbc: ranks and test results of simulation-based calibration, by posterior.
    """

    metrics: dict[str, Tensor]
    unseen: dict[str, Tensor] = field(default_factory=dict)
    sbc: SbcResults = field(default_factory=dict)


def interval(estimate: Estimate, factor: float = 100, digits: int = 1) -> str:
    """Format the mean and the 95% interval over tasks, multiplied by `factor`, such as "72.7 +- 0.6"."""
    return f"{factor * estimate.mean.item():.{digits}f} +- {factor * estimate.ci95.item():.{digits}f}"


def rows_of(report: Report, rate: float) -> list[dict[str, str]]:
    """Return the table, one row per metric with its interval over tasks.

    Args:
        report: the results.
        rate: false-alarm rate of the test in simulation-based calibration.
    """
    cells: list[Cell] = []
    if "bins" in report.metrics:
        cells.append(("ECE, %", interval(reliability(report.metrics["bins"]).ece)))
    if "coverage" in report.metrics:
        for level in TABLE_LEVELS:
            cells += _coverage_cells(report.metrics, level)
    if report.unseen:
        cells += _entropy_cells(report.unseen)
    cells += [(f"SBC of the {name}", _sbc_cell(*result, rate)) for name, result in report.sbc.items()]
    return [{"metric": name, "value": value} for name, value in cells]


def _coverage_cells(metrics: Mapping[str, Tensor], level: float) -> list[Cell]:
    place, percent = LEVELS.index(level), f"{100 * level:g}%"
    at_level = {name: Estimate.over_tasks(value[:, place]) for name, value in metrics.items() if name in AT_LEVELS}
    if "size" not in at_level:
        return [(f"coverage of {percent} intervals, %", interval(at_level["coverage"]))]
    return [
        (f"coverage of {percent} sets, %", interval(at_level["coverage"])),
        (f"probability in {percent} sets, %", interval(at_level["mass"])),
        (f"classes in {percent} sets", interval(at_level["size"], 1, 2)),
    ]


def _entropy_cells(unseen: Mapping[str, Tensor]) -> list[Cell]:
    titles = {
        "known": "entropy, known classes, nats",
        "unseen": "entropy, unseen classes, nats",
        "auroc": "AUROC of the entropy, unseen against known",
    }
    return [(title, interval(Estimate.over_tasks(unseen[name]), 1, 3)) for name, title in titles.items()]


def _sbc_cell(ranks: Ranks, tested: Uniformity, rate: float) -> str:
    worst = ranks.names[int(tested.p_values.argmin())]
    verdict = "flagged" if tested.flagged else "not flagged"
    return f"{verdict} at {rate:g}; least p {tested.p_values.min():.4f} of {len(ranks.names)} ({worst})"
