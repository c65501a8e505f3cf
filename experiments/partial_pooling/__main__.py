"""python -m experiments.partial_pooling study=radon: amortized partial pooling beside closed forms and NUTS.

Trains the runs of conf/study/NAME.yaml (a table of groups), fits the same linear mixed model by maximum and restricted
maximum likelihood and samples it under weak priors. Finished runs are kept, so an interrupted study goes on when it is
called again. Leaves table.md, table.csv, effects.png, shrinkage.png and prior.png. docs/partial-pooling.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.hierarchical_nuts import sampled
from pyro_metabayes.exact.mixed_effects import fit
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.partial_pooling.methods import (
    Learned,
    groups_and_learner,
    held_out_rmse,
    mean_distance,
    of_draws,
    of_fit,
    of_run,
)
from pyro_metabayes.experiments.partial_pooling.plots import draw_effects, draw_prior, draw_shrinkage
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row, read
from pyro_metabayes.experiments.studies.tables import commands, spread

HELD_OUT = "held_out"  # the part whose runs learn from some groups and are scored on others
ML, REML, NUTS = "maximum likelihood", "restricted maximum likelihood", "NUTS, weak priors"


@dataclass
class PoolingConfig(StudyConfig):
    """Which study, how it is run, and how long NUTS."""

    samples: int = 500  # draws from each of two chains
    warmup: int = 300
    splits: int = 20  # of the groups, for the closed forms on groups that are held out


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    if config.samples < 4 or config.warmup < 1 or config.splits < 1:
        raise UsageError(f"expected samples >= 4, warmup and splits >= 1, got {config.samples}, {config.warmup}")
    name = f"partial pooling of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, lambda study, rows, where: write(rows, where, config))


def write(rows: list[Row], folder: Path, config: PoolingConfig) -> None:
    """Tables and pictures of the parts that are finished."""
    pages, table = [], []
    if whole := [row for row in rows if row.part != HELD_OUT]:
        table = of_all_points(whole, folder, config)
        pages.append(markdown_table(table))
        print(text_table(table))
    if held_out := [row for row in rows if row.part == HELD_OUT]:
        predicted = of_held_out(held_out, folder, config.splits)
        pages.append(markdown_table(predicted))
        print(text_table(predicted))
        table = table or predicted
    if table:
        save_tables(folder, "\n\n".join([*pages, commands(rows)]) + "\n", table)
        print(f"table.md, table.csv and pictures: {folder}")


def of_all_points(rows: Sequence[Row], folder: Path, config: PoolingConfig) -> list[dict[str, str]]:
    """A line a method, and the three pictures."""
    groups = groups_of(rows[0], folder)
    found = fit(groups.whole(), groups.num_random)
    draws = sampled(groups.whole(), groups.num_random, config.samples, config.warmup)
    print(f"NUTS: split R-hat at most {draws.r_hat:.3f}, effective draws at least {draws.effective_size:.0f}")
    restricted = of_fit(groups, fit(groups.whole(), groups.num_random, restricted=True))
    methods = {
        ML: [of_fit(groups, found)],
        REML: [replace(restricted, log_likelihood=None)],  # of contrasts: no number to compare with
        NUTS: [of_draws(groups, draws)],
        **{row.label: [of_run(row.folder(folder, seed)) for seed in range(row.seeds)] for row in rows},
    }
    amortized = methods[rows[0].label]
    draw_effects(groups, {ML: methods[ML][0], rows[0].label: amortized[0], NUTS: methods[NUTS][0]}, folder)
    draw_shrinkage(groups, found, amortized[0], folder)
    draw_prior(groups, draws, {name: its for name, its in methods.items() if name != NUTS}, folder)
    return [line_of(groups, name, its, methods[ML][0]) for name, its in methods.items()]


def groups_of(row: Row, folder: Path) -> Groups:
    run = row.folder(folder, 0)
    return groups_and_learner(saved_config(run, []), run)[0]


def line_of(groups: Groups, name: str, seeds: Sequence[Learned], best: Learned) -> dict[str, str]:
    """Means over seeds, with their range; what is compared is compared with maximum likelihood."""
    own, smallest = list(groups.features[: groups.num_random]), groups.sizes == groups.sizes.min()
    size = int(groups.sizes.min())
    everywhere = smallest | ~smallest
    cells = {"": name, "seeds": str(len(seeds))}
    for i, feature in enumerate(groups.features):
        cells[feature] = spread([its.coefficients[i].item() for its in seeds], 3)
    for i, feature in enumerate(own):
        cells[f"sd {feature}"] = spread([its.sd[i].item() for its in seeds], 4)
    if len(own) > 1:
        cells["correlation"] = spread([its.correlation for its in seeds], 3)
    cells["noise"] = spread([its.noise for its in seeds], 4)
    cells["log likelihood"] = spread([its.log_likelihood for its in seeds], 2)
    for i, feature in enumerate(own):
        for which, of in (("", everywhere), (f", groups of {size}", smallest)):
            cells[f"off: {feature}{which}"] = spread([mean_distance(its, best, of)[i] for its in seeds], 4)
        ratios = [(its.effects_sd[:, i] / best.effects_sd[:, i]).mean().item() for its in seeds]
        cells[f"its sd / ML: {feature}"] = spread(ratios, 3)
    return cells


def of_held_out(rows: Sequence[Row], folder: Path, splits: int) -> list[dict[str, str]]:
    """RMSE with a few points of each new group; the closed forms over many splits, and over those of the runs."""
    table = []
    for row in rows:
        for again in sorted({path.name for path in row.folder(folder, 0).glob("evaluations/*")}):
            folders = [row.folder(folder, seed) for seed in range(row.seeds)]
            results = [read(its / "evaluations" / again) for its in folders]
            mine = [closed_forms(its, again, None) for its in folders]
            many = [closed_forms(folders[0], again, seed) for seed in range(splits)]
            for name in many[0]:
                table.append(_line(f"{name}, {again}", [its[name] for its in many]))
                table.append(_line(f"{name}, {again}, splits of the runs", [its[name] for its in mine]))
            table.append(_line(f"{row.label}, {again}", [its["rmse"] for its in results], results))
    return table


def closed_forms(run: Path, changes: str, split: int | None) -> dict[str, float]:
    """RMSE on the tasks that a run is scored on, or on those of another split of the groups."""
    others = [] if split is None else [f"data.seed={split}", f"seed={split}"]
    assembly = Assembly(saved_config(run, [*changes.split(","), *others]))
    assert isinstance(assembly.source, Groups)
    return held_out_rmse(assembly.source, assembly.stream("test").batch(0, assembly.config.eval.tasks))


def _line(name: str, values: Sequence[float], results: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    half = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    covered = [its["coverage90"] for its in results]
    return {
        "": name,
        "splits": str(len(values)),
        "standardised RMSE": f"{np.mean(values):.3f}" + ("" if half is None else f" +- {half:.3f}"),
        "coverage of 90%": f"{np.mean(covered):.3f}" if covered else "-",
    }


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=PoolingConfig)
    run_command(main, "partial_pooling")
