"""python -m benchmarks.pooling [TABLE ...] [--seeds N]: compare partial pooling with the closed form on some tables.

A run learns from 60% of the groups of a table in METABAYES_DATA/groups, with the command of docs/own-data.md and no
other setting. The other groups are predicted from three points each. There is one row per table and seed: metrics of
the run / metrics of the closed form (maximum likelihood), on the same tasks, in standard deviations of the response.
The names of the columns give the tolerances; * marks a metric out of tolerance. "by chance" is the 95% range of the
coverage if the responses are drawn from the fitted model. The range is wide for few test groups.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.partial_pooling.closed_form_scores import range_of_coverage, scores_of
from pyro_metabayes.experiments.partial_pooling.methods import (
    estimates_from_fit,
    estimates_from_run,
    groups_and_learner,
)
from pyro_metabayes.experiments.runs.finished_runs import read_run
from pyro_metabayes.experiments.runs.setup import set_up
from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.storage.cache import data_file

# Columns of each table: group, response, predictors, random effects.
TABLES = {
    "sleepstudy": ("Subject", "Reaction", "[Days]", "[intercept,Days]"),
    "gapminder": ("country", "lifeExp", "[year]", "[intercept,year]"),
    "Oxboys": ("Subject", "height", "[age]", "[intercept,age]"),
    "ChickWeight": ("Chick", "weight", "[Time]", "[intercept,Time]"),
    "Orthodont": ("Subject", "distance", "[age]", "[intercept,age]"),
    "radon": ("county.name", "log.radon", "[basement,uranium]", "[intercept]"),
}


def command(table: str, guide: str, seed: int, folder: Path) -> list[str]:
    """Return the arguments of the documented command; `seed` also chooses the test groups."""
    group, response, predictors, random = TABLES[table]
    path = data_file(f"groups/{table}.csv", "see docs/partial-pooling.md")
    columns = [f"data.group={group}", f"data.response={response}", f"data.predictors={predictors}"]
    columns += [f"data.random={random}", "data.train=0.6"]
    return ["run", f"guide={guide}", "data=groups", f"data.path={path}", *columns, f"seed={seed}", _folder(folder)]


def _folder(folder: Path) -> str:
    return f"hydra.run.dir={folder}"


def execute(name: str, *arguments: str) -> None:
    """Run python -m experiments.NAME. The output is shown only if the command fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"pyro_metabayes.experiments.{name}", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip() or done.stdout.strip()}")


def row(table: str, guide: str, seed: int, folder: Path) -> dict[str, str]:
    execute(*command(table, guide, seed, folder))
    execute("evaluate", str(folder), "task.shot=3")
    results = read_run(folder / "evaluations" / "task.shot=3").results
    config = saved_config(folder, ["task.shot=3"])
    groups, tasks = groups_and_learner(config, folder)[0], set_up(config, training=False).tasks
    fitted = groups.estimates()
    assert fitted is not None

    def evaluated(table: Groups) -> Episodes:
        return replace(tasks, source=table).stream("test").batch(0, config.eval.tasks)

    exact, by_chance = scores_of(fitted, evaluated(groups)), range_of_coverage(fitted, groups, evaluated)
    learned, best = estimates_from_run(folder), estimates_from_fit(groups, fitted)
    ratios = [*(learned.sd / best.sd).tolist(), learned.noise / best.noise]
    coverage = results["coverage90"]
    return {
        "table": table if seed == 0 else f"{table}, seed {seed}",
        "RMSE, +-2%": cell(results["rmse"], exact["rmse"], abs(results["rmse"] / exact["rmse"] - 1) < 0.02),
        "NLL, +-0.02": cell(results["nll"], exact["nll"], abs(results["nll"] - exact["nll"]) < 0.02),
        "coverage, .86-.94": cell(coverage, exact["coverage90"], 0.86 <= coverage <= 0.94),
        "by chance": f"{by_chance[0]:.2f} to {by_chance[1]:.2f}",
        "sds, noise / ML, +-10%": ", ".join(f"{ratio:.3f}{'' if abs(ratio - 1) < 0.1 else ' *'}" for ratio in ratios),
    }


def cell(run: float, closed_form: float, inside: bool) -> str:
    return f"{run:.3f} / {closed_form:.3f}{'' if inside else ' *'}"


def parse_tables(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of a command that also takes names of tables, by default all tables."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(TABLES)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.tables) - TABLES.keys():
        parser.error(f"expected tables among {', '.join(TABLES)}, got {', '.join(sorted(unknown))}")
    options.tables = options.tables or list(TABLES)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pooling", description=__doc__.splitlines()[0])
    parser.add_argument("--guide", default="partial_pooling")
    parser.add_argument("--seeds", type=int, default=1)
    options = parse_tables(parser, arguments)
    if options.seeds < 1:
        parser.error(f"expected --seeds >= 1, got {options.seeds}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for table in options.tables:
                rows.append(row(table, options.guide, seed, Path(folder) / f"{table}{seed}"))
                print(text_table(rows[-1:]), flush=True)
    print(markdown_table(rows))


if __name__ == "__main__":
    run_program(main)
