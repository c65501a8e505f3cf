"""python -m experiments.partial_pooling study=radon: amortized partial pooling compared with closed forms and NUTS.

The command trains the runs of conf/study/NAME.yaml on a table of groups. The same linear mixed model is also estimated
in three other ways: by maximum likelihood, by restricted maximum likelihood, and by NUTS under weak priors. For a
response of 0 and 1 or of counts, the model is a generalised linear mixed model, estimated by NUTS and, with one effect
per group, by maximum likelihood. Finished runs are kept, so the same command continues an interrupted study.

The command writes table.md, table.csv and effects.png, and for a linear mixed model also shrinkage.png and prior.png.
docs/partial-pooling.md explains the tables and plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.hierarchical_nuts import sampled
from pyro_metabayes.exact.mixed_effects import fit
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.composition import beside_command, config_of
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import narrow, text_table
from pyro_metabayes.experiments.partial_pooling.generalised import generalised_rows
from pyro_metabayes.experiments.partial_pooling.methods import (
    estimates_from_draws,
    estimates_from_fit,
    estimates_from_run,
    groups_and_learner,
    held_out_rmse,
)
from pyro_metabayes.experiments.partial_pooling.plots import draw_effects, draw_prior, draw_shrinkage
from pyro_metabayes.experiments.partial_pooling.tables import held_out_row, method_row
from pyro_metabayes.experiments.runs.grouped_data import groups_in
from pyro_metabayes.experiments.runs.setup import set_up
from pyro_metabayes.experiments.runs.tables import Row as Cells
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.experiments.runs.tasks import load_data
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row, chosen_rows, read
from pyro_metabayes.experiments.studies.tables import commands

HELD_OUT = "held_out"  # the part of the study whose runs train on some groups and are evaluated on the other groups
ML, REML, NUTS = "maximum likelihood", "restricted maximum likelihood", "NUTS, weak priors"


@dataclass
class PoolingConfig(StudyConfig):
    """Settings of experiments.partial_pooling: those of `StudyConfig`, and those of the other methods."""

    samples: int = 500  # number of draws of NUTS from each of two chains
    warmup: int = 300  # number of warm-up steps of NUTS
    splits: int = 20  # number of random splits of the groups, on which the closed forms are evaluated


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    if config.samples < 4 or config.warmup < 1 or config.splits < 1:
        got = f"samples={config.samples}, warmup={config.warmup} and splits={config.splits}"
        raise UsageError(f"expected samples >= 4, warmup >= 1 and splits >= 1, got {got}")
    refuse_other_tables(chosen_rows(config.study, config.size, config.parts))
    name = f"partial pooling of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, lambda study, rows, where: write(rows, where, config))


def refuse_other_tables(rows: Sequence[Row]) -> None:
    """Check, before any run, that the data are a table of groups. Only the part `held_out` may have nested groups."""
    row = next((row for row in rows if row.part != HELD_OUT), rows[0])
    with beside_command():
        config = config_of(row.settings)
    groups = groups_in(load_data(config), config)
    if groups.num_inner and row.part != HELD_OUT:
        raise UsageError(
            f"expected one column of groups, got {groups.roles.nested} (nested groups); name one column, or "
            "use experiments.effects, which estimates nested groups"
        )


def write(rows: list[Row], folder: Path, config: PoolingConfig) -> None:
    """Write the tables and plots of the finished parts of the study.

    Args:
        rows: the rows of the finished parts.
        folder: the folder of the study.
        config: the settings of the command.
    """
    pages, table = [], []
    if unsplit := [row for row in rows if row.part != HELD_OUT]:
        table = all_points_rows(unsplit, folder, config)
        pages.append(_printed(table))
    if held_out := [row for row in rows if row.part == HELD_OUT]:
        predicted = held_out_rows(held_out, folder, config.splits)
        pages.append(_printed(predicted))
        table = table or predicted
    if table:
        save_tables(folder, "\n\n".join([*pages, commands(rows)]) + "\n", table)
        print(f"table.md, table.csv and plots: {folder}")


def _printed(table: Sequence[Cells]) -> str:
    """Print a table, and return it in Markdown, split into tables that fit a page."""
    print(text_table(table))
    return "\n\n".join(map(markdown_table, narrow(table)))


def all_points_rows(rows: Sequence[Row], folder: Path, config: PoolingConfig) -> list[dict[str, str]]:
    """Return one row per method, estimated from all points of all groups, and save the plots.

    For responses that are 0 and 1 or counts, the only plot is effects.png.
    """
    groups = groups_of(rows[0], folder)
    if groups.family != "gaussian":
        return generalised_rows(groups, rows, folder, config.samples, config.warmup)
    whole = groups.with_equal_precision(groups.whole())
    maximum = groups.of_labels(fit(whole, groups.num_random))
    draws = sampled(whole, groups.num_random, config.samples, config.warmup)
    print(f"NUTS: split R-hat at most {draws.r_hat:.3f}, effective draws at least {draws.effective_size:.0f}")
    restricted = estimates_from_fit(groups, fit(whole, groups.num_random, restricted=True))
    methods = {
        ML: [estimates_from_fit(groups, maximum)],
        REML: [replace(restricted, log_likelihood=None)],  # not comparable with the likelihood
        NUTS: [estimates_from_draws(groups, draws)],
        **{row.label: list(map(estimates_from_run, row.folders(folder))) for row in rows},
    }
    amortized = methods[rows[0].label]
    draw_effects(groups, {ML: methods[ML][0], rows[0].label: amortized[0], NUTS: methods[NUTS][0]}, folder)
    draw_shrinkage(groups, maximum, amortized[0], folder)
    draw_prior(groups, draws, {name: seeds for name, seeds in methods.items() if name != NUTS}, folder)
    return [method_row(groups, name, seeds, methods[ML][0]) for name, seeds in methods.items()]


def groups_of(row: Row, folder: Path) -> Groups:
    """Load the table of groups on which a row of the study is trained."""
    run = row.folder(folder, 0)
    return groups_and_learner(saved_config(run, []), run)[0]


def held_out_rows(rows: Sequence[Row], folder: Path, splits: int) -> list[dict[str, str]]:
    """Return the table of the RMSE on held-out groups, given a few points of each group.

    The table compares the runs with closed forms, on the splits of the runs and on other random splits.

    Args:
        rows: the rows of the part with held-out groups.
        folder: the folder of the study.
        splits: the number of other splits.
    """
    table = []
    for row in rows:
        for evaluation in sorted({path.name for path in row.folder(folder, 0).glob("evaluations/*")}):
            folders = row.folders(folder)
            results = [read(run / "evaluations" / evaluation) for run in folders]
            of_runs = [closed_forms(run, evaluation, None) for run in folders]
            of_splits = [closed_forms(folders[0], evaluation, seed) for seed in range(splits)]
            for name in of_splits[0]:
                table.append(held_out_row(f"{name}, {evaluation}", [rmse[name] for rmse in of_splits]))
                table.append(
                    held_out_row(f"{name}, {evaluation}, splits of the runs", [rmse[name] for rmse in of_runs])
                )
            table.append(held_out_row(f"{row.label}, {evaluation}", [result["rmse"] for result in results], results))
    return table


def closed_forms(run: Path, changes: str, split: int | None) -> dict[str, float]:
    """Return the RMSE of the closed forms, by method, on the evaluation tasks of a run.

    Args:
        run: the folder of the run.
        changes: changed settings of the evaluation, separated by commas.
        split: the seed of another split of the groups; None for the split of the run.
    """
    changed = [] if split is None else [f"data.seed={split}", f"seed={split}"]
    config = saved_config(run, [*changes.split(","), *changed])
    config = config if split is None else replace(config, estimated={})  # estimated again from the new training groups
    tasks = set_up(config, training=False).tasks
    assert isinstance(tasks.source, Groups)
    return held_out_rmse(tasks.source, tasks.stream("test").batch(0, config.eval.tasks))


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=PoolingConfig)
    run_command(main, "partial_pooling")
