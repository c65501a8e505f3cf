"""Tables of experiments.effects: the prior, and the effects of each group."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.experiments.effects.estimates import Effects
from pyro_metabayes.experiments.partial_pooling.methods import least_squares_effects

Row = dict[str, str]


def text(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.5g}"


def prior_rows(groups: Groups, methods: Mapping[str, Effects]) -> list[Row]:
    """Return the table of the prior: one row per coefficient, per correlation of effects, and for the noise.

    Each method has the columns estimate, standard error (se) and sd over groups.

    Args:
        groups: the groups of the file.
        methods: the estimates of each method, by name.
    """
    rows = []
    for place, feature in enumerate(groups.features):
        row = {"": feature}
        for name, effects in methods.items():
            own, errors = place < groups.num_random, effects.errors
            row |= {
                name: text(effects.estimates.coefficients[place].item()),
                f"se, {name}": text(None if errors is None else errors[place].item()),
                f"sd of groups, {name}": text(effects.estimates.sd[place].item() if own else None),
            }
        rows.append(row)
    for first, second in combinations(range(groups.num_random), 2):
        label = f"correlation of {groups.features[first]}, {groups.features[second]}"
        rows.append(_single(label, {name: _correlation(e.covariance, first, second) for name, e in methods.items()}))
    return [*rows, _single("sd of the noise", {name: effects.estimates.noise for name, effects in methods.items()})]


def _single(label: str, values: Mapping[str, float]) -> Row:
    row = {"": label}
    for name, value in values.items():
        row |= {name: text(value), f"se, {name}": "-", f"sd of groups, {name}": "-"}
    return row


def _correlation(covariance: Tensor, first: int, second: int) -> float:
    return (covariance[first, second] / (covariance[first, first] * covariance[second, second]).sqrt()).item()


def effect_rows(groups: Groups, run: Effects, closed: Effects | None, fitted: MixedEffects | None) -> list[Row]:
    """Return the table of effects, with one row per group and effect.

    Shrinkage is the posterior variance divided by the prior variance.

    Args:
        groups: the groups of the file.
        run: the estimates of the run.
        closed: the closed-form estimates, or None.
        fitted: the maximum-likelihood estimates of the linear mixed model, or None.
    """
    shrinkage = run.estimates.effects_sd.square() / run.estimates.sd.square()
    reach = run.estimates.reach
    train = set(groups.splits["train"].tolist())
    alone = None
    if fitted is not None:
        shared = fitted.coefficients[groups.num_random :]
        episodes = groups.with_equal_precision(groups.all_points())
        alone = groups.scales.effects_in_units(least_squares_effects(fitted, episodes), shared)
    rows = []
    for group, name in enumerate(groups.names):
        for place, feature in enumerate(groups.features[: groups.num_random]):
            estimate = run.estimates.effects[group, place]
            rows.append({
                "group": name,
                "points": str(int(groups.sizes[group])),
                "in training": "yes" if group in train else "no",
                "effect": feature,
                "estimate": text(estimate.item()),
                "lower": text((estimate - reach[group, place]).item()),
                "upper": text((estimate + reach[group, place]).item()),
                "shrinkage": text(shrinkage[group, place].item()),
                "closed form": text(None if closed is None else closed.estimates.effects[group, place].item()),
                "least squares": text(None if alone is None else alone[group, place].item()),
            })  # fmt: skip
    return rows
