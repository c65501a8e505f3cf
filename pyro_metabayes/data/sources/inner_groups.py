"""Nested groups: the groups of a table, such as schools, contain smaller groups, such as classes.

A task is one of the larger groups. A smaller group has an intercept, which is the weight of an indicator feature: 1 for
the rows of the smaller group, else 0. The smaller groups of a task are numbered, so indicator k of two tasks belongs to
different groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_metabayes.data.sources.chosen_columns import Rows
from pyro_metabayes.data.sources.header import Name
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.data.sources.scales import Scales
from pyro_metabayes.errors import UsageError


def columns_of_groups(group: Name | Sequence[Name]) -> tuple[Name, Name]:
    """Return the columns of the larger and of the smaller groups that data.group names; None: no smaller groups."""
    if group is None or isinstance(group, str | int | float):
        return group, None
    if len(group) not in (1, 2):
        raise UsageError(
            f"expected one column in data.group, or two for nested groups, the larger groups first, got {len(group)}; "
            "name two of them, and add larger ones to data.predictors as factors"
        )
    return group[0], group[1] if len(group) == 2 else None


def names_of_inner(rows: Rows) -> list[list[str]]:
    """Return the names of the inner groups of each group; groups, and inner groups, are in the order of the file."""
    found: dict[str, dict[str, None]] = {}
    for key, name in zip(rows.keys, rows.inner or [], strict=True):
        found.setdefault(key, {})[name] = None
    return [list(names) for names in found.values()]


def check_inner(rows: Rows, learned: Tensor, roles: Roles, family: str) -> list[str]:
    """Return notes about the inner groups; raise a UsageError if their sd cannot be estimated.

    Args:
        rows: N rows.
        learned: [N], whether a row belongs to a training group; all False if nothing is estimated from these rows.
        roles: names of the columns.
        family: family of the response.
    """
    columns, setting = roles.nested, roles.setting_of("group")
    if family != "gaussian":
        raise UsageError(f"expected data.family=gaussian for {columns}, got {family}; name one column in {setting}")
    each = zip(rows.keys, rows.inner or [], learned.tolist(), strict=True)
    pairs = Counter((key, name) for key, name, used in each if used)
    if not pairs:
        return []
    names = Counter(key for key, _ in pairs)
    largest = max(names.values())
    if largest == 1:
        raise UsageError(
            f"expected several values of '{roles.inner}' for one value of '{roles.group}' for {columns}, got one for "
            "each; name the larger groups first, or name one column"
        )
    shared = len({name for _, name in pairs}) < len(pairs)
    repeat = ". Equal names in different larger groups count as different groups; crossed groups are not supported"
    if max(pairs.values()) == 1:
        raise UsageError(
            f"expected several rows for one value of '{roles.inner}' for {columns}, got one row for each, so that "
            f"intercepts cannot be told from noise; name only '{roles.group}' in {setting}{repeat if shared else ''}"
        )
    return [
        f"{len(pairs)} groups '{roles.inner}' in {len(names)} groups '{roles.group}', at most {largest} in one"
        + (repeat if shared else "")
    ]


def with_indicators(rows: Rows, size: int, file: Path | str) -> Rows:
    """Insert the indicators of inner groups after the other features with group-specific weights.

    Args:
        rows: N rows.
        size: C, the number of indicators.
        file: the file, for the message.

    Raises:
        UsageError: a group has more than C inner groups.
    """
    names = dict(zip(dict.fromkeys(rows.keys), names_of_inner(rows), strict=True))
    key, most = max(names.items(), key=lambda item: len(item[1]))
    if len(most) > size:
        raise UsageError(
            f"expected at most {size} inner groups in a group, as in the data of the run, got {len(most)} in '{key}' "
            f"of {file}; add the column of the larger groups, leave out rows, or train on such data"
        )
    places = [names[key].index(name) for key, name in zip(rows.keys, rows.inner or [], strict=True)]
    own = len(rows.random)
    indicators = one_hot(torch.tensor(places), size).to(rows.values)
    values = torch.cat((rows.values[:, :own], indicators, rows.values[:, own:]), 1)
    titles = indicator_names(size)
    columns = [*rows.columns[:own], *titles, *rows.columns[own:]]
    return replace(rows, values=values, columns=columns, random=[*rows.random, *titles])


def scales_with_indicators(scales: Scales, place: int, size: int) -> Scales:
    """Insert C = size indicators, which are not standardised, before the column `place`."""

    def inserted(values: Tensor, value: float) -> Tensor:
        return torch.cat((values[:place], values.new_full((size,), value), values[place:]))

    columns = [*scales.columns[:place], *indicator_names(size), *scales.columns[place:]]
    return replace(scales, columns=columns, mean=inserted(scales.mean, 0.0), sd=inserted(scales.sd, 1.0))


def indicator_names(size: int) -> list[str]:
    return [f"inner group {number + 1}" for number in range(size)]
