"""Regression in groups: reads a CSV file with groups of rows, such as pupils of a school. Each group is a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_metabayes.data.sources.chosen_columns import ChosenColumns, Levels, Rows, chosen_columns
from pyro_metabayes.data.sources.column_checks import (
    learnable_scales,
    notes_of_training,
    refuse_other_family,
    refuse_unresolved,
)
from pyro_metabayes.data.sources.column_notes import notes_of_units
from pyro_metabayes.data.sources.formula import roles_of_formula
from pyro_metabayes.data.sources.grouped_rows import Groups
from pyro_metabayes.data.sources.header import Name, file_of
from pyro_metabayes.data.sources.inner_groups import (
    check_inner,
    columns_of_groups,
    names_of_inner,
    scales_with_indicators,
    with_indicators,
)
from pyro_metabayes.data.sources.ragged import Ragged
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.data.sources.row_points import points_of
from pyro_metabayes.data.sources.row_weights import check_offset
from pyro_metabayes.data.sources.scales import INTERCEPT, Moments, Scales, check_given
from pyro_metabayes.data.sources.split_groups import splits_of
from pyro_metabayes.errors import UsageError

Scaling = Mapping[str, Moments]


def load(
    group: Name | Sequence[Name] = "",
    response: Name = "",
    predictors: Sequence[Name] = (),
    random: Sequence[Name] = (INTERCEPT,),
    path: str = "",
    table: str = "",
    shuffle: bool = True,
    train: float = 1.0,
    val: float = 0.0,
    seed: int = 0,
    missing: str = "refuse",
    decimal: str = "point",
    factors: Sequence[Name] = (),
    family: str = "gaussian",
    scales: Scaling | None = None,
    levels: Levels | None = None,
    formula: str = "",
    weights: Name = None,
    offset: Name = None,
    num_inner: int = 0,
) -> Groups:
    """Read the groups of a CSV file or of METABAYES_DATA/groups/TABLE.csv, and standardise all columns.

    Args:
        group: the column with the name of the group. For nested groups two columns, [school,class]: each class of a
            school has an intercept of its own, with one sd.
        response: the column to predict.
        predictors: columns of numbers or of text. A column of text is a factor and has an indicator for each level
            except the first. "a:b" is the product of columns a and b.
        random: the predictors with group-specific weights, and "intercept" if each group has its own intercept. All
            groups share the weights of other predictors. Without "intercept" the lines of all groups meet at x = 0,
            so the predictors in `random` are scaled but not centred.
        path: the file. Cells are separated by commas, semicolons, tabs or vertical bars.
        table: the name of a table, if there is no path.
        shuffle: whether the support set is a random part of the group; false: its first rows, such as the past.
        train: fraction of the groups for training; 1: every split contains all groups, for partial pooling.
        val: fraction of the groups for validation; 0: validation uses the training groups. The rest is for test.
        seed: seed of the assignment of groups to splits.
        missing: "refuse" or "drop" rows with missing values. With "drop", the group names NA and null are missing too.
        decimal: decimal separator, "point" or "comma".
        factors: predictors whose numbers are codes of levels, not quantities.
        family: family of the response: "gaussian"; "bernoulli" for 0 and 1; "poisson" for counts. Only a Gaussian
            response is standardised.
        scales: mean and sd of columns by name, in the units of the file; None: computed from the training groups.
        levels: levels of the factors; None: read from the file.
        formula: such as "score ~ hours + (hours | school)", in place of group, response, predictors, random, factors.
        weights: column of weights. The noise variance of a row with weight a is divided by a.
        offset: column that is added to the linear predictor, for counts the logarithm of the exposure.
        num_inner: largest number of inner groups in a group, for nested groups; 0: that of the file.

    Raises:
        UsageError: the file, a column or a setting is not suitable for a regression.
    """
    file = file_of(path, table)
    outer, inner = columns_of_groups(group)
    roles = _roles(Roles(outer, response, predictors, random, factors, weights, offset, inner), formula, num_inner)
    if roles.weights is not None and family != "gaussian":
        raise UsageError(f"expected data.family=gaussian with data.weights, got {family}; remove data.weights")
    chosen, given = chosen_columns(file, roles), scales or {}
    read = chosen.read(missing, decimal, {} if given and levels is None else levels)
    names = {name: number for number, name in enumerate(dict.fromkeys(read.keys))}
    if len(names) < 2:
        raise UsageError(
            f"expected at least two groups in column '{chosen.group}' of {file}, got one; fix "
            f"{roles.setting_of('group')}, or add groups"
        )
    place = torch.tensor([names[key] for key in read.keys])
    splits = splits_of(len(names), train, val, seed)
    refuse_other_family(read.values[:, -1], family, read.columns[-1], file)
    learned = torch.isin(place, splits["train"])
    standard, about = _scales(read, learned, chosen, roles, given, family)
    roles = replace(roles, group=chosen.group, weights=chosen.weights, offset=chosen.offset, inner=chosen.inner)
    inner_names: list[list[str]] = []
    if read.inner is not None:
        about, inner_names = about + check_inner(read, learned & (not given), roles, family), names_of_inner(read)
        num_inner = num_inner or max(map(len, inner_names))
        standard = scales_with_indicators(standard, len(read.random), num_inner)
        read = with_indicators(read, num_inner, file)
    points = points_of(read, standard, family).to(torch.get_default_dtype())
    parts = Ragged.of(place, points), len(read.random), splits, standard, shuffle, read.notes + about
    return Groups(list(names), read.features, *parts, read.levels, family, roles, num_inner, inner_names)


def _scales(
    read: Rows, learned: Tensor, chosen: ChosenColumns, roles: Roles, given: Scaling, family: str
) -> tuple[Scales, list[str]]:
    """Return the scales of all columns and notes about them; raise a UsageError for columns that cannot be used.

    Args:
        read: the N rows of the file.
        learned: [N], whether a row belongs to a training group.
        chosen: the columns of these rows.
        roles: the settings that name these columns, for messages.
        given: the scales of an earlier training; empty: none.
        family: family of the response.
    """
    file, values = chosen.header.path, read.without_offset(family).values
    of_columns = {name: moments for name, moments in given.items() if name not in (chosen.weights, chosen.offset)}
    standard = learnable_scales(values[learned], read.columns, read.random, of_columns, file, roles)
    standard = standard.with_response_of(family)
    refuse_unresolved(standard.standardised(values), read.columns, file)
    offset = chosen.offset if family != "gaussian" else None
    standard = _with_means(standard, read, learned, replace(chosen, offset=offset), given)
    if offset is not None and read.offset is not None:
        check_offset(read.offset, offset, file)
    if given:
        known = [name for name, moments in given.items() if "sd" in moments]
        return standard, notes_of_units(values, standard, known, family)
    return standard, notes_of_training(values[learned], standard, file, family, roles)


def _roles(named: Roles, formula: str, num_inner: int) -> Roles:
    """Return the columns, named by the settings or by the formula; check that data.num_inner fits them."""
    roles = _named_roles(named, formula)
    if num_inner and roles.inner is None:
        raise UsageError(f"expected data.num_inner=0 without nested groups, got {num_inner}; remove data.num_inner")
    return roles


def _named_roles(named: Roles, formula: str) -> Roles:
    """Return the columns named by the settings or by the formula; both together raise a UsageError."""
    if not formula:
        if missing := [name for name in ("group", "response") if getattr(named, name) == ""]:
            raise UsageError(
                f"expected a value for data.{missing[0]}, got none; set data.{missing[0]}=..., or data.formula"
            )
        return named
    nothing = Roles("", "")
    both = [
        name
        for name in ("group", "response", "predictors", "random", "factors")
        if [*getattr(named, name)] != [*getattr(nothing, name)]
    ]
    if both:
        raise UsageError(f"expected data.formula or data.{both[0]}, got both; remove one of them")
    return roles_of_formula(formula, named.weights, named.offset)


def _with_means(scales: Scales, rows: Rows, learned: Tensor, chosen: ChosenColumns, given: Scaling) -> Scales:
    """Return the scales with the mean weight and the mean offset of rows.

    Means that are not in `given` are computed from the training rows.
    """

    def mean(name: str | None, column: Tensor | None, otherwise: float) -> float:
        if name is None or column is None:
            return otherwise
        known = given.get(name, {}).get("mean", column[learned].mean().item())
        check_given({name: {"mean": known}}, [name])
        return known

    weight = mean(chosen.weights, rows.weights, 1.0)
    if weight <= 0:
        raise UsageError(f"expected a mean of data.weights > 0 in data.scales, got {weight}; start a new run")
    return replace(scales, weight=weight, offset=mean(chosen.offset, rows.offset, 0.0))
