"""python -m benchmarks.pooling [TABLE ...] [--seeds N]: compares partial pooling with the closed form on some tables.

A run learns from 60% of the groups of a table in METABAYES_DATA/groups, with the command of docs/own-data.md and no
other setting. The other groups are predicted from three points each. There is one row per table and seed: metrics of
the run / metrics of the closed form (maximum likelihood), on the same tasks, in standard deviations of the response.
The last column lists metrics outside these tolerances: RMSE within 2%, NLL within 0.02, coverage of 90% intervals
between 0.86 and 0.94, each learned sd and the noise within 10%.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.partial_pooling.closed_form_scores import scores_of
from pyro_metabayes.experiments.partial_pooling.methods import (
    estimates_from_fit,
    estimates_from_run,
    groups_and_learner,
)
from pyro_metabayes.experiments.runs.finished_runs import read_run
from pyro_metabayes.experiments.runs.setup import set_up
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
    """The documented command; `seed` also chooses the test groups."""
    group, response, predictors, random = TABLES[table]
    path = data_file(f"groups/{table}.csv", "see docs/partial-pooling.md")
    columns = [f"data.group={group}", f"data.response={response}", f"data.predictors={predictors}"]
    columns += [f"data.random={random}", "data.train=0.6"]
    return ["run", f"guide={guide}", "data=groups", f"data.path={path}", *columns, f"seed={seed}", _folder(folder)]


def _folder(folder: Path) -> str:
    return f"hydra.run.dir={folder}"


def execute(name: str, *arguments: str) -> None:
    """Run python -m experiments.NAME; its output is shown only if it fails."""
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
    exact = scores_of(fitted, tasks.stream("test").batch(0, config.eval.tasks))
    learned, best = estimates_from_run(folder), estimates_from_fit(groups, fitted)
    ratios = [*(learned.sd / best.sd).tolist(), learned.noise / best.noise]
    kept = [
        abs(results["rmse"] / exact["rmse"] - 1) < 0.02,
        abs(results["nll"] - exact["nll"]) < 0.02,
        0.86 <= results["coverage90"] <= 0.94,
        all(abs(ratio - 1) < 0.1 for ratio in ratios),
    ]
    names = ("RMSE", "NLL", "coverage", "sds")
    return {
        "table": table,
        "seed": str(seed),
        "RMSE": f"{results['rmse']:.3f} / {exact['rmse']:.3f}",
        "NLL": f"{results['nll']:.3f} / {exact['nll']:.3f}",
        "coverage 90%": f"{results['coverage90']:.3f} / {exact['coverage90']:.3f}",
        "sds, noise / ML": ", ".join(f"{ratio:.3f}" for ratio in ratios),
        "outside": ", ".join(name for name, inside in zip(names, kept, strict=True) if not inside) or "-",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pooling", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(TABLES)}")
    parser.add_argument("--guide", default="partial_pooling")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(arguments)
    if unknown := set(options.tables) - TABLES.keys():
        parser.error(f"expected tables among {', '.join(TABLES)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for table in options.tables or TABLES:
                print(text_table([row(table, options.guide, seed, Path(folder) / f"{table}{seed}")]), flush=True)


if __name__ == "__main__":
    main()
