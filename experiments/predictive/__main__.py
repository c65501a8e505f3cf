"""python -m experiments.predictive run=RUN_DIR tasks=64: do labels look like those that the trained model would draw?

Posterior and prior predictive checks of a finished run; settings of task, eval and guide may be changed beside it.
Leaves predictive.png and table.md in RUN_DIR/predictive.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from omegaconf.errors import OmegaConfBaseException

from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.predictive import discrepancies, predictive_draws
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.messages import one_line
from pyro_metabayes.experiments.predictive.plots import Checks, draw
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks, settings_of
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.seeding import noise_of

TAILS = 0.05


@dataclass
class PredictiveSettings:
    """Of which run, how many of its tasks, and how many draws of w a task; noise is the seed of the draws."""

    run: str = MISSING
    tasks: int = 64
    samples: int = 100
    noise: int = 0


def checks_of(settings: PredictiveSettings, changed: Sequence[str]) -> Checks:
    """{"posterior": ..., "prior": ...}, each the discrepancies by name; no prior where it is flat."""
    assembly, episodes = run_and_tasks(settings.run, changed, settings.tasks)
    with noise_of(settings.noise):
        drawn = predictive_draws(assembly.learner, episodes, settings.samples)
        both = {"posterior": drawn.posterior, "prior": drawn.prior}
        return {
            name: discrepancies(assembly.learner, episodes.observed(), draws, episodes.query_y)
            for name, draws in both.items()
            if draws is not None
        }


def rows_of(checks: Checks) -> list[dict[str, str]]:
    """A row for each discrepancy under each distribution; a calibrated model has 5% in either tail."""
    return [
        {
            "draws from": name,
            "discrepancy": which,
            "observed": f"{its.observed.mean():.3f}",
            "replicated": f"{its.replicated.mean():.3f}",
            "mean p": f"{its.p_values.mean():.3f}",
            f"p < {TAILS}, %": f"{100 * as_double(its.p_values < TAILS).mean():.1f}",
            f"p > {1 - TAILS}, %": f"{100 * as_double(its.p_values > 1 - TAILS).mean():.1f}",
        }
        for name, each in checks.items()
        for which, its in each.items()
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
    print(f"table.md, table.csv and picture: {draw(checks, out / 'predictive.png')}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UsageError, OmegaConfBaseException, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
