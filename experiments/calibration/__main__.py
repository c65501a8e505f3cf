"""python -m experiments.calibration run=RUN_DIR: does a trained guide know how often it is right?

Reliability and ECE, coverage of prediction sets (classes) or intervals (numbers), entropy on queries of classes that
the support set does not have, and simulation-based calibration; settings of task, eval and guide may be changed too.
Leaves table.md, table.csv, calibration.png and sbc.png in RUN_DIR/calibration. docs/calibration.md says what they mean.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from torch import Tensor

from pyro_metabayes.diagnostics.calibration import LEVELS, Estimate, calibration, reliability, unseen_classes
from pyro_metabayes.diagnostics.sbc import Ranks, Uniformity, sbc_ranks, uniformity
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.calibration.plots import draw, draw_sbc
from pyro_metabayes.experiments.cli.command import answer
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.experiments.runs.restore_run import assembly_of, batches, settings_of
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.seeding import noise_of

TOLD = (0.5, 0.9, 0.95)  # levels in the table; the picture has all
Tested = dict[str, tuple[Ranks, Uniformity]]


@dataclass
class CalibrationSettings:
    """Of which run, how many of its tasks, draws of w a task; tasks and draws of the simulation; seed of the noise.

    prior: what weights are simulated from: learned, simulator (where that knows the truth), auto: the latter if it can.
    """

    run: str = MISSING
    tasks: int = 600
    samples: int = 100
    sbc_tasks: int = 512  # 0: no simulation
    draws: int = 99
    rate: float = 0.05  # of false alarms of the simulation-based calibration
    prior: str = "auto"
    noise: int = 0

    def check(self) -> None:
        if self.samples < 1 or self.sbc_tasks < 0 or self.draws < 1 or not 0 < self.rate < 1:
            got = f"{self.samples}, {self.sbc_tasks}, {self.draws} and {self.rate}"
            raise UsageError(f"expected samples, draws >= 1, sbc_tasks >= 0 and 0 < rate < 1, got {got}")
        if self.prior not in ("auto", "learned", "simulator"):
            raise UsageError(f"expected prior to be one of auto, learned, simulator, got '{self.prior}'")


@dataclass(frozen=True)
class Report:
    """Everything that was found; what a setting does not have is empty."""

    figures: dict[str, Tensor]
    unseen: dict[str, Tensor] = field(default_factory=dict)
    sbc: Tested = field(default_factory=dict)


def report_of(settings: CalibrationSettings, assembly: Assembly) -> Report:
    stream = assembly.stream(assembly.config.eval.split)
    with noise_of(settings.noise):
        figures = calibration(assembly.learner, batches(stream, settings.tasks), settings.samples)
        unseen = {}
        wider = assembly.with_other_classes(assembly.config.task.way)
        if wider is not None:
            tasks = batches(wider[0], settings.tasks)
            unseen = unseen_classes(assembly.learner, tasks, assembly.config.task.way, settings.samples)
        return Report(figures, unseen, sbc_of(settings, assembly) if settings.sbc_tasks else {})


def sbc_of(settings: CalibrationSettings, assembly: Assembly) -> Tested:
    """Of the posterior at test, and of that in training where it is another; {} for a point mass or a flat prior."""
    if settings.prior == "simulator" and assembly.truth is None:
        raise UsageError(
            "expected a simulator that knows the truth for prior=simulator, got other data; take prior=learned"
        )
    truth = None if settings.prior == "learned" else assembly.truth
    learner = assembly.learner
    episodes = assembly.stream(assembly.config.eval.split).batch(0, settings.sbc_tasks)
    observed = learner.featured(episodes).observed()
    if not has_density(learner.guide.posterior(observed)) or (
        truth is None and not has_density(learner.model.prior(observed))
    ):
        return {}
    tested = {}
    for training in (False, True)[: 1 + learner.guide.sees_query_labels]:
        ranks = sbc_ranks(learner, episodes, settings.draws, training, truth)
        tested["training posterior" if training else "posterior"] = ranks, uniformity(ranks, settings.rate)
    return tested


def _told(estimate: Estimate, factor: float = 100, digits: int = 1) -> str:
    return f"{factor * estimate.mean.item():.{digits}f} +- {factor * estimate.ci95.item():.{digits}f}"


def rows_of(report: Report, rate: float) -> list[dict[str, str]]:
    """One figure a row, with its interval over tasks."""
    rows = []
    if "bins" in report.figures:
        rows.append(("ECE, %", _told(reliability(report.figures["bins"]).ece)))
    for level in TOLD:
        place = LEVELS.index(level)
        each = {name: Estimate.over_tasks(value[:, place]) for name, value in report.figures.items() if name != "bins"}
        kind = "sets" if "size" in each else "intervals"
        rows.append((f"coverage of {100 * level:g}% {kind}, %", _told(each["coverage"])))
        if "size" in each:
            rows.append((f"probability in these {kind}, %", _told(each["mass"])))
            rows.append((f"classes in these {kind}", _told(each["size"], 1, 2)))
    if report.unseen:
        rows.append(("entropy, known classes, nats", _told(Estimate.over_tasks(report.unseen["known"]), 1, 3)))
        rows.append(("entropy, unseen classes, nats", _told(Estimate.over_tasks(report.unseen["unseen"]), 1, 3)))
        rows.append(
            ("AUROC of the entropy, unseen against known", _told(Estimate.over_tasks(report.unseen["auroc"]), 1, 3))
        )
    for name, (ranks, found) in report.sbc.items():
        worst = ranks.names[int(found.p_values.argmin())]
        verdict = "flagged" if found.flagged else "not flagged"
        rows.append(
            (
                f"SBC of the {name}",
                f"{verdict} at {rate:g}; least p {found.p_values.min():.4f} of {len(ranks.names)} ({worst})",
            )
        )
    return [{"figure": name, "value": value} for name, value in rows]


def main(arguments: Sequence[str]) -> None:
    settings, changed = settings_of(CalibrationSettings, arguments)
    settings.check()
    report = report_of(settings, assembly_of(settings.run, changed, settings.tasks))
    out = Path(settings.run) / "calibration"
    rows = rows_of(report, settings.rate)
    save_tables(out, f"{markdown_table(rows)}\n", rows)
    print(text_table(rows))
    draw(report.figures, report.unseen, out / "calibration.png")
    if report.sbc:
        draw_sbc(report.sbc, out / "sbc.png")
    print(f"tables and pictures: {out}")


if __name__ == "__main__":
    answer(lambda: main(sys.argv[1:]))
