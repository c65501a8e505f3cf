"""python -m experiments.predictive run=RUN_DIR tasks=64: do labels look like those that the trained model would draw?

Posterior and prior predictive checks of a finished run; settings of task, eval and guide may be changed beside it.
Leaves predictive.png and table.md in RUN_DIR/predictive.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from omegaconf.errors import OmegaConfBaseException

from experiments.mistakes import one_line
from experiments.trained import run_and_tasks, settings_of
from pyro_metabayes.device import as_double
from pyro_metabayes.diagnostics.predictive import Discrepancy, discrepancies, predictive_draws
from pyro_metabayes.errors import UsageError
from pyro_metabayes.report import markdown_table, new_figure, save_figure, save_tables, text_table
from pyro_metabayes.seeding import noise_of

SHOWN = 16  # tasks of the picture
TAILS = 0.05
Checks = dict[str, dict[str, Discrepancy]]


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


def draw(checks: Checks, path: Path) -> Path:
    """Replicated and observed NLL of single tasks, under posterior and prior, and the p-values of all."""
    figure, axes = new_figure(len(checks) + 1)
    for axis, (name, each) in zip(axes, checks.items(), strict=False):
        its = each["nll"]
        order = its.observed[:SHOWN].argsort().cpu()
        axis.boxplot(its.replicated[:, order].cpu().numpy(), whis=(5, 95), showfliers=False, widths=0.6)
        axis.plot(np.arange(1, len(order) + 1), its.observed[order].cpu(), "o", color="C3", ms=4, label="observed")
        axis.set(xlabel="tasks, by their NLL", ylabel="NLL, nats a query", xticks=[])
        axis.set_title(f"labels drawn from the {name} (boxes, whiskers 5 to 95%)", fontsize=9)
        axis.legend(frameon=False, fontsize=8)
    _draw_p_values(axes[-1], checks)
    return save_figure(figure, path)


def _draw_p_values(axis: Any, checks: Checks) -> None:
    for name, each in checks.items():
        axis.hist(each["nll"].p_values.cpu().numpy(), np.linspace(0, 1, 11), density=True, alpha=0.5, label=name)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set(xlabel="p-value of the NLL: 0 too sure, 1 not sure enough", ylabel="density over tasks")
    axis.legend(frameon=False, fontsize=8)


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
