"""python -m benchmarks.coverage [TABLE ...]: coverage of 90% intervals, without and with the errors of the estimates.

A linear mixed model is fitted to all groups of a table, and responses are drawn from this model. Ten random groups are
the training groups. Each other group is predicted from none or from three of its points. Effects are those of the
training groups, in the units of the file. "plug-in": intervals of maximum likelihood, as if the estimates were exact.
"with errors": intervals of experiments.predict and experiments.effects. +- is a 95% interval over the drawn tables.

With --splits N the responses are those of the table. N random splits assign 60% of the groups to training; the others
are predicted given three points. The rows have the mean coverage, its sd and the range of 95% of the splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.pooling import TABLES, parse_tables
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.data.sources.split_groups import splits_of
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.diagnostics.collapse import HALF_OF_90
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.exact.estimation_errors import EstimationErrors
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.effects.estimates import standardised_of_fit
from pyro_metabayes.experiments.effects.widening import widened_effects
from pyro_metabayes.experiments.partial_pooling.closed_form_scores import predicted, simulated
from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.prediction.averages import masked_mean

KNOWN = (0, 3)  # numbers of known points of a new group
INTERVALS = ("plug-in", "with errors")
FEWEST = 2  # least number of splits or drawn tables from which an interval can be computed


def table_of(name: str) -> Groups:
    group, response, predictors, random = TABLES[name]
    return load(group, response, predictors.strip("[]").split(","), random.strip("[]").split(","), table=name)


def shares(table: Groups, effects: Tensor, true: MixedEffects, generator: Generator) -> dict[str, tuple[float, float]]:
    """Compute the coverage (plug-in, with errors) of each kind of interval; {} if the likelihood has no maximum."""
    fitted, errors = table.estimates(), table.estimation_errors()
    if fitted is None or errors is None:
        return {}
    found = {f"new group, {shot} points": of_new_groups(table, fitted, errors, shot, generator) for shot in KNOWN}
    return found | {"effects": of_effects(table, fitted, errors, effects, true)}


def of_new_groups(
    table: Groups, fitted: MixedEffects, errors: EstimationErrors, shot: int, generator: Generator
) -> tuple[float, float]:
    tasks = table.sampler("test", TaskShape(way=1, shot=shot, query=1000))(generator).tasks(slice(None))
    prediction = predicted(fitted, tasks)
    distance = (tasks.query_y[..., 0] - prediction.mean).abs() / prediction.stddev
    widening = errors.of_queries(tasks.observed())
    reaches = torch.tensor(HALF_OF_90), widening.ratio * widening.quantile(0.9)
    plug_in, with_errors = (masked_mean((distance < reach).double(), tasks.query_mask).mean() for reach in reaches)
    return plug_in.item(), with_errors.item()


def of_effects(
    table: Groups, fitted: MixedEffects, errors: EstimationErrors, effects: Tensor, true: MixedEffects
) -> tuple[float, float]:
    own, train = len(true.covariance), table.splits["train"]
    truth = table.scales.effects_in_units(true.coefficients[:own] + effects, true.coefficients[own:])[train]
    estimates = widened_effects(table, standardised_of_fit(table, fitted), errors)
    distance = (truth - estimates.effects[train]).abs()
    reaches = HALF_OF_90 * estimates.effects_sd, estimates.reach
    plug_in, with_errors = ((distance < reach[train]).double().mean() for reach in reaches)
    return plug_in.item(), with_errors.item()


def rows_of_splits(name: str, num_splits: int) -> list[dict[str, str]]:
    generator, found = Generator().manual_seed(0), []
    table = table_of(name)
    for seed in range(num_splits):
        split = replace(table, splits=splits_of(len(table.names), train=0.6, val=0.0, seed=seed))
        fitted, errors = split.estimates(), split.estimation_errors()
        if fitted is not None and errors is not None:
            found.append(of_new_groups(split, fitted, errors, max(KNOWN), generator))
    check_number(found, f"splits of {name}", num_splits)
    return [
        {"table": name, "interval": kind, "test groups": str(len(split.splits["test"])), "splits": str(len(found))}
        | {"mean": f"{values.mean():.3f}", "sd": f"{values.std(ddof=1):.3f}"}
        | {"95% of splits": "{:.2f} to {:.2f}".format(*np.quantile(values, [0.025, 0.975]))}
        for kind, values in zip(INTERVALS, np.array(found).T, strict=True)
    ]


def rows(name: str, num_groups: int, num_tables: int) -> list[dict[str, str]]:
    groups, generator = table_of(name), Generator().manual_seed(0)
    if num_groups >= (most := len(groups.names)):
        raise UsageError(
            f"expected --groups < {most}, the number of groups of {name}, got {num_groups}; lower --groups"
        )
    true = groups.estimates()
    assert true is not None
    drawn: list[dict[str, tuple[float, float]]] = []
    for _ in range(num_tables):
        table, effects = simulated(true, groups, generator)
        order = torch.randperm(len(groups.names), generator=generator)
        table = replace(table, splits={"train": order[:num_groups], "test": order[num_groups:]})
        if found := shares(table, effects, true, generator):
            drawn.append(found)
    check_number(drawn, f"drawn tables of {name}", num_tables)
    return [
        {"table": name, "interval": kind, "tables": str(len(drawn))}
        | {title: _share([found[kind][place] for found in drawn]) for place, title in enumerate(INTERVALS)}
        for kind in drawn[0]
    ]


def check_number(found: Sequence[object], what: str, of: int) -> None:
    """Check that at least FEWEST likelihoods have a maximum. An interval cannot be computed from fewer values."""
    if len(found) < FEWEST:
        raise UsageError(
            f"expected a likelihood with a maximum in at least {FEWEST} of {of} {what}, got {len(found)}; train on "
            "more groups"
        )


def _share(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} +- {ci95_of(np.array(values)):.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10, help="number of training groups")
    parser.add_argument("--draws", type=int, default=200, help="number of drawn tables")
    parser.add_argument("--splits", type=int, help="number of random splits of the table itself")
    options = parse_tables(parser, arguments)
    for name, least in {"groups": 1, "draws": FEWEST, "splits": FEWEST}.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"expected --{name} >= {least}, got {value}")
    every: list[dict[str, str]] = []
    for name in options.tables:
        of_table = rows_of_splits(name, options.splits) if options.splits else rows(name, options.groups, options.draws)
        every += of_table
        print(text_table(of_table), flush=True)
    print(markdown_table(every))


if __name__ == "__main__":
    run_program(main)
