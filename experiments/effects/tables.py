"""Tables of experiments.effects: the prior, and the effects of each group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.experiments.effects.estimates import Effects
from pyro_metabayes.experiments.effects.prior_parameters import names_of_parameters
from pyro_metabayes.experiments.partial_pooling.methods import least_squares_effects

Row = dict[str, str]


def text(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.5g}"


def prior_rows(groups: Groups, methods: Mapping[str, Effects]) -> list[Row]:
    """Return the table of the prior: one row per coefficient, sd and correlation, and one for a Gaussian noise.

    Each method has the columns estimate and standard error (se).

    Args:
        groups: the groups of the file.
        methods: the estimates of each method, by name.
    """
    own = [*range(groups.num_own), *range(groups.num_random, len(groups.features))]
    parameters = names_of_parameters(groups)
    rows: list[Row] = [{"": name} for name in [*(groups.features[place] for place in own), *parameters]]
    for method, found in methods.items():
        missing = torch.full_like(found.parameters, torch.nan)
        values = torch.cat((found.estimates.coefficients[own], found.parameters))
        of_coefficients = missing.new_full((len(own),), torch.nan) if found.errors is None else found.errors[own]
        of_parameters = missing if found.errors_of_parameters is None else found.errors_of_parameters
        errors = torch.cat((of_coefficients, of_parameters))
        for row, value, error in zip(rows, values.tolist(), errors.tolist(), strict=True):
            row |= {method: text(value), f"se, {method}": text(error)}
    return rows


def effect_rows(groups: Groups, run: Effects, closed: Effects | None, fitted: MixedEffects | None) -> list[Row]:
    """Return the table of effects, with one row per group and effect, then one row per inner group of nested groups.

    Shrinkage is the posterior variance divided by the prior variance. The effect of an inner group is the difference of
    its intercept from that of its group.

    Args:
        groups: the groups of the file.
        run: the estimates of the run.
        closed: the closed-form estimates, or None.
        fitted: the maximum-likelihood estimates of the linear mixed model, or None.
    """
    estimates, alone = run.estimates, _least_squares(groups, fitted)
    shrinkage, reach = estimates.effects_sd.square() / estimates.sd.square(), estimates.reach
    train = set(groups.splits["train"].tolist())
    rows = []
    for place, labels in _labels(groups):
        estimate, inner = estimates.effects[place], place[1] >= groups.num_own
        rows.append(labels | {
            "in training": "yes" if place[0] in train else "no",
            "estimate": text(estimate.item()),
            "lower": text((estimate - reach[place]).item()),
            "upper": text((estimate + reach[place]).item()),
            "shrinkage": text(shrinkage[place].item()),
            "closed form": text(None if closed is None else closed.estimates.effects[place].item()),
            "least squares": text(None if alone is None or inner else alone[place].item()),
        })  # fmt: skip
    return rows


def _labels(groups: Groups) -> Iterator[tuple[tuple[int, int], Row]]:
    """Yield the indices (group, effect) and the cells group, points and effect of each row of the table of effects."""
    for group, name in enumerate(groups.names):
        for effect, feature in enumerate(groups.features[: groups.num_own]):
            yield (group, effect), {"group": name, "points": str(int(groups.sizes[group])), "effect": feature}
    indicators = groups.all_points().query_x[..., groups.num_own : groups.num_random].sum(1)
    for group, names in enumerate(groups.inner_names):
        for number, name in enumerate(names):
            points = str(int(indicators[group, number]))
            difference = f"{INTERCEPT}, difference from {groups.roles.group}"
            label = {"group": f"{groups.names[group]}/{name}", "points": points, "effect": difference}
            yield (group, groups.num_own + number), label


def _least_squares(groups: Groups, fitted: MixedEffects | None) -> Tensor | None:
    """Return the effects of each group by least squares, in the units of the file [groups, effects]."""
    if fitted is None:
        return None
    alone = least_squares_effects(fitted, groups.with_equal_precision(groups.all_points()), groups.num_inner)
    return groups.scales.effects_in_units(alone, fitted.coefficients[groups.num_random :])
