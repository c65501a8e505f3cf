"""Partial pooling of responses that are 0 and 1 or counts: runs, maximum likelihood by quadrature, and NUTS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.exact.generalised import GeneralisedEffects, fit_by_quadrature, points_of
from pyro_metabayes.exact.generalised_nuts import sampled_generalised
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.effects.estimates import standardised_of_run
from pyro_metabayes.experiments.partial_pooling.methods import (
    GroupEstimates,
    StandardisedEstimates,
    estimates_from_draws,
    groups_and_learner,
    mean_distance,
)
from pyro_metabayes.experiments.partial_pooling.plots import draw_effects
from pyro_metabayes.experiments.studies.study import Row, read
from pyro_metabayes.experiments.studies.tables import spread

NUTS, QUADRATURE = "NUTS, weak priors", "maximum likelihood"


def generalised_rows(
    groups: Groups, rows: Sequence[Row], folder: Path, samples: int, warmup: int
) -> list[dict[str, str]]:
    """Return one row per method, and save effects.png.

    Maximum likelihood is included only if there is one effect per group.

    Args:
        groups: the table of groups.
        rows: the rows of the study.
        folder: the folder of the study.
        samples: number of draws of NUTS per chain.
        warmup: number of warm-up steps of NUTS.
    """
    points = points_of(groups.whole(), groups.roles.offset is not None)
    draws = sampled_generalised(points, groups.num_random, groups.family, samples, warmup)
    print(f"NUTS: split R-hat at most {draws.r_hat:.3f}, effective draws at least {draws.effective_size:.0f}")
    methods = {NUTS: [replace(estimates_from_draws(groups, draws), correlation=None)]}
    if groups.num_random == 1:
        methods[QUADRATURE] = [estimates_from_quadrature(groups, fit_by_quadrature(points, groups.family))]
    seconds: dict[str, Sequence[float]] = {}
    for row in rows:
        folders = row.folders(folder)
        methods[row.label] = [_estimates_from_run(run) for run in folders]
        seconds[row.label] = [read(run)["seconds"]["train"] for run in folders]
    shown = {name: seeds[0] for name, seeds in methods.items() if name != QUADRATURE}
    draw_effects(groups, shown, folder)
    return [_method_row(groups, name, seeds, methods[NUTS][0], seconds) for name, seeds in methods.items()]


def estimates_from_quadrature(groups: Groups, fitted: GeneralisedEffects) -> GroupEstimates:
    """Return the maximum-likelihood estimates and the posterior of each group, in the units of the file."""
    effects, variance = fitted.effects.unsqueeze(-1), fitted.effects_sd.square().view(-1, 1, 1)
    covariance = fitted.sd.square().view(1, 1)
    standardised = StandardisedEstimates(fitted.coefficients, covariance, torch.nan, effects, variance)
    return standardised.in_units(groups, fitted.log_likelihood)


def _estimates_from_run(folder: Path) -> GroupEstimates:
    groups, learner = groups_and_learner(saved_config(folder, []), folder)
    return standardised_of_run(groups, learner).in_units(groups)


def _method_row(
    groups: Groups,
    name: str,
    seeds: Sequence[GroupEstimates],
    reference: GroupEstimates,
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, str]:
    """Return one row of the table: means and ranges over seeds.

    The column "distance" is the mean over groups of |estimate - posterior mean of NUTS|, divided by the mean over
    groups of the posterior sd of NUTS.

    Args:
        groups: the table of groups.
        name: the name of the method.
        seeds: the estimates of the method, one per seed.
        reference: the estimates of NUTS.
        seconds: training times of the runs, by method.
    """
    cells = {"": name}
    for i, feature in enumerate(groups.features):
        cells[feature] = spread([estimates.coefficients[i].item() for estimates in seeds], 3)
    for i, feature in enumerate(groups.features[: groups.num_random]):
        cells[f"sd {feature}"] = spread([estimates.sd[i].item() for estimates in seeds], 3)
        unit = reference.effects_sd[:, i].mean().item()
        every = torch.ones(len(groups.names), dtype=torch.bool)
        distances = [mean_distance(estimates, reference, every)[i] / unit for estimates in seeds]
        cells[f"distance: {feature}"] = spread(distances, 3)
        ratios = [(estimates.effects_sd[:, i] / reference.effects_sd[:, i]).mean().item() for estimates in seeds]
        cells[f"sd / NUTS: {feature}"] = spread(ratios, 3)
    return cells | {"seconds": spread(seconds[name], 0) if name in seconds else "-"}
