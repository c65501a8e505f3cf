"""Rows of the tables of experiments.partial_pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.partial_pooling.methods import GroupEstimates, mean_distance
from pyro_metabayes.experiments.studies.tables import spread


def method_row(groups: Groups, name: str, seeds: Sequence[GroupEstimates], reference: GroupEstimates) -> dict[str, str]:
    """Return one row of the table: means and ranges over seeds.

    Args:
        groups: the table of groups.
        name: the name of the method.
        seeds: the estimates of the method, one per seed.
        reference: the maximum-likelihood estimates, with which effects and sds are compared.
    """
    random = list(groups.features[: groups.num_random])
    cells = {"": name, "seeds": str(len(seeds))}
    for i, feature in enumerate(groups.features):
        cells[feature] = spread([estimates.coefficients[i].item() for estimates in seeds], 3)
    for i, feature in enumerate(random):
        cells[f"sd {feature}"] = spread([estimates.sd[i].item() for estimates in seeds], 4)
    if len(random) > 1:
        cells["correlation"] = spread([estimates.correlation for estimates in seeds], 3)
    cells["noise"] = spread([estimates.noise for estimates in seeds], 4)
    cells["log likelihood"] = spread([estimates.log_likelihood for estimates in seeds], 2)
    return cells | _distance_cells(groups, random, seeds, reference)


def _distance_cells(
    groups: Groups, random: Sequence[str], seeds: Sequence[GroupEstimates], reference: GroupEstimates
) -> dict[str, str]:
    """Return the cells that compare effects and their sds with maximum likelihood.

    Distances of the effects are means over all groups, and over the smallest groups.
    """
    smallest, size = groups.sizes == groups.sizes.min(), int(groups.sizes.min())
    subsets: dict[str, Tensor] = {"": smallest | ~smallest}
    if not smallest.all():
        subsets[f", groups of {size}"] = smallest
    cells = {}
    for i, feature in enumerate(random):
        for title, subset in subsets.items():
            cells[f"distance: {feature}{title}"] = spread(
                [mean_distance(estimates, reference, subset)[i] for estimates in seeds], 4
            )
        ratios = [(estimates.effects_sd[:, i] / reference.effects_sd[:, i]).mean().item() for estimates in seeds]
        cells[f"sd / ML: {feature}"] = spread(ratios, 3)
    return cells


def held_out_row(name: str, values: Sequence[float], results: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return one row of the table of held-out groups: RMSE with its 95% interval over splits, and mean coverage.

    Args:
        name: the name of the row.
        values: the RMSE of each split.
        results: results.json of each split, for the coverage.
    """
    half_width = ci95_of(np.array(values)) if len(values) > 1 else None
    coverage = [result["coverage90"] for result in results]
    return {
        "": name,
        "splits": str(len(values)),
        "standardised RMSE": f"{np.mean(values):.3f}" + ("" if half_width is None else f" +- {half_width:.3f}"),
        "coverage of 90%": f"{np.mean(coverage):.3f}" if coverage else "-",
    }
