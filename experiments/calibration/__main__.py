"""python -m experiments.calibration RUN_DIR: calibration of a trained guide.

For a run on classes, the command reports reliability, ECE, the coverage of prediction sets, and the entropy of
predictions for queries of classes without support points. For a regression, the command reports the coverage of
intervals. For numbers and ordered classes, calibration.png shows the probability integral transform. Posteriors are
also tested by simulation-based calibration (SBC), unless they are point estimates or the prior is flat. Settings of
task, eval and guide can be changed. The command writes table.md, table.csv, calibration.png and, for SBC, sbc.png to
RUN_DIR/calibration. docs/calibration.md explains the metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from pyro_metabayes.diagnostics.calibration import calibration, unseen_classes
from pyro_metabayes.diagnostics.sbc import sbc_ranks, uniformity
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.experiments.calibration.plots import draw, draw_sbc
from pyro_metabayes.experiments.calibration.tables import Report, SbcResults, rows_of
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.restore_run import batches, settings_of, setup_of
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.inference.divergences import has_density
from pyro_metabayes.seeding import seeded


@dataclass
class CalibrationSettings:
    """Settings of experiments.calibration."""

    run: str = MISSING  # folder of a finished run
    tasks: int = 600  # number of evaluation tasks
    samples: int = 200  # number of draws of w per task
    sbc_tasks: int = 512  # number of tasks for simulation-based calibration; 0 omits it
    draws: int = 99  # number of posterior draws per task in simulation-based calibration
    rate: float = 0.05  # false-alarm rate of the test in simulation-based calibration
    prior: str = "auto"  # prior of simulated weights: learned, simulator (of the data), auto (simulator, if any)
    noise: int = 0  # seed of all draws

    def check(self) -> None:
        if self.samples < 1 or self.sbc_tasks < 0 or self.draws < 1 or not 0 < self.rate < 1:
            got = f"samples={self.samples}, sbc_tasks={self.sbc_tasks}, draws={self.draws} and rate={self.rate}"
            raise UsageError(f"expected samples >= 1, sbc_tasks >= 0, draws >= 1 and 0 < rate < 1, got {got}")
        check_choice("prior", self.prior, ("auto", "learned", "simulator"))


def report_of(settings: CalibrationSettings, setup: RunSetup) -> Report:
    """Compute all calibration metrics of a run."""
    stream = setup.tasks.stream(setup.config.eval.split)
    with seeded(settings.noise):
        metrics = calibration(setup.learner, batches(stream, settings.tasks), settings.samples)
        unseen = {}
        wider = setup.tasks.with_other_classes(setup.config.task.way)
        if wider is not None:
            tasks = batches(wider[0], settings.tasks)
            unseen = unseen_classes(setup.learner, tasks, setup.config.task.way, settings.samples)
        return Report(metrics, unseen, sbc_of(settings, setup) if settings.sbc_tasks else {})


def sbc_of(settings: CalibrationSettings, setup: RunSetup) -> SbcResults:
    """Test the posterior by simulation-based calibration (SBC).

    If the guide sees query labels in training, its training posterior is tested too.

    Returns:
        Ranks and test results by posterior. {} if SBC is not defined: for a point estimate, or for weights from a flat
            prior.

    Raises:
        UsageError: prior=simulator, but the data have no known prior.
    """
    if settings.prior == "simulator" and setup.tasks.truth is None:
        raise UsageError(
            "expected simulated data with a known prior for prior=simulator, got other data; set prior=learned"
        )
    truth = None if settings.prior == "learned" else setup.tasks.truth
    learner = setup.learner
    episodes = setup.tasks.stream(setup.config.eval.split).batch(0, settings.sbc_tasks)
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


def main(arguments: Sequence[str]) -> None:
    settings, changed = settings_of(CalibrationSettings, arguments)
    settings.check()
    report = report_of(settings, setup_of(settings.run, changed, settings.tasks))
    out = Path(settings.run) / "calibration"
    rows = rows_of(report, settings.rate)
    save_tables(out, f"{markdown_table(rows)}\n", rows)
    print(text_table(rows))
    draw(report.metrics, report.unseen, out / "calibration.png")
    if report.sbc:
        draw_sbc(report.sbc, out / "sbc.png")
    print(f"tables and plots: {out}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
