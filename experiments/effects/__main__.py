"""python -m experiments.effects RUN_DIR: the learned prior and the effects of each group of a run on data=groups.

The command prints means, standard errors, sds and correlations of the effects. For a linear mixed model it also prints
the sd of the noise, the log-likelihood of the training groups, and the closed-form estimates (maximum likelihood). All
values are in the units of the file, with intercepts at x = 0. The command writes prior.csv, effects.png and effects.csv
to RUN_DIR.

Estimates of linear mixed models are maximum likelihood, not REML: with few groups, the sds of the effects are smaller
than those of REML.

effects.csv has one row per group and effect, and one per inner group of nested groups. A row has the estimate given
all points of the group, the 90% interval (no option changes this level), the shrinkage and, for a linear mixed model,
the closed-form estimate and the least-squares estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.effects.estimates import effects_of_fit, effects_of_run
from pyro_metabayes.experiments.effects.tables import effect_rows, prior_rows
from pyro_metabayes.experiments.effects.widening import LEVEL
from pyro_metabayes.experiments.partial_pooling.plots import draw_effects
from pyro_metabayes.experiments.runs.grouped_data import groups_in, has_independent_effects, log_likelihoods
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.experiments.runs.tables import Row, csv_table
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="the folder of a finished run")
    folder = parser.parse_args(arguments).run
    setup = restore_run(folder, saved_config(folder, ["device=cpu"]))
    groups, learner = groups_in(setup.tasks.source, setup.config), setup.learner
    run = effects_of_run(groups, learner)
    independent = has_independent_effects(learner, groups)
    fitted = groups.estimates(diagonal=independent) if learner.model.canonical else None
    closed = None if fitted is None else effects_of_fit(groups, fitted, independent)
    methods = {"run": run} | ({} if closed is None else {"closed form": closed})
    prior, effects = prior_rows(groups, methods), effect_rows(groups, run, closed, fitted)
    for name, rows in {"prior.csv": prior, "effects.csv": effects}.items():
        write_atomically(folder / name, partial(_write_table, rows))
    draw_effects(groups, {name: method.estimates for name, method in methods.items()}, folder)
    print(text_table(prior))
    if values := log_likelihoods(groups, learner, setup.device):
        both = f"{values['learned']:.2f} (run), {values['closed_form']:.2f} (closed form)"
        print(f"log likelihood of the training groups: {both}; estimates are maximum likelihood, not REML")
    print(f"effects.csv: {LEVEL}")
    print(f"prior.csv, effects.csv ({len(groups.names)} groups) and effects.png: {folder}")


def _write_table(rows: Sequence[Row], path: Path) -> None:
    path.write_text(csv_table(rows))


if __name__ == "__main__":
    run_program(main)
