"""python -m experiments.predictive RUN_DIR tasks=64: posterior and prior predictive checks of a finished run.

Settings of task, eval and guide can be changed. The command writes predictive.png, table.md and table.csv to
RUN_DIR/predictive.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.predictive import discrepancies, predictive_draws
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.predictive.plots import Checks, draw
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks, settings_of
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.seeding import seeded

TAILS = 0.05  # p-values below 0.05, and above 0.95, are counted


@dataclass
class PredictiveSettings:
    """Settings of experiments.predictive."""

    run: str = MISSING  # folder of a finished run
    tasks: int = 64  # number of evaluation tasks
    samples: int = 200  # number of draws of w per task: one half draws replicated labels, the other half scores labels
    noise: int = 0  # seed of the draws


def checks_of(settings: PredictiveSettings, changed: Sequence[str]) -> Checks:
    """Compute the discrepancies by name, under "posterior" and "prior". A flat prior has no entry "prior"."""
    setup, episodes = run_and_tasks(settings.run, changed, settings.tasks)
    with seeded(settings.noise):
        replications = predictive_draws(setup.learner, episodes, settings.samples)
        distributions = {"posterior": replications.posterior, "prior": replications.prior}
        return {
            name: discrepancies(setup.learner, episodes.observed(), draws, episodes.query_y)
            for name, draws in distributions.items()
            if draws is not None
        }


def rows_of(checks: Checks) -> list[dict[str, str]]:
    """Return one row per discrepancy and distribution. A calibrated model has 5% of the p-values in each tail."""
    return [
        {
            "draws from": name,
            "discrepancy": title,
            "observed": f"{discrepancy.observed.mean():.3f}",
            "replicated": f"{discrepancy.replicated.mean():.3f}",
            "mean p": f"{discrepancy.p_values.mean():.3f}",
            f"p < {TAILS}, %": f"{100 * as_double(discrepancy.p_values < TAILS).mean():.1f}",
            f"p > {1 - TAILS}, %": f"{100 * as_double(discrepancy.p_values > 1 - TAILS).mean():.1f}",
        }
        for name, by_name in checks.items()
        for title, discrepancy in by_name.items()
    ]


def main(arguments: Sequence[str]) -> None:
    settings, changed = settings_of(PredictiveSettings, arguments)
    if settings.samples < 2:
        raise UsageError(f"expected samples >= 2, got {settings.samples}")
    checks = checks_of(settings, changed)
    out = Path(settings.run) / "predictive"
    rows = rows_of(checks)
    save_tables(out, f"{markdown_table(rows)}\n", rows)
    print(text_table(rows))
    print(f"table.md, table.csv and plot: {draw(checks, out / 'predictive.png')}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
