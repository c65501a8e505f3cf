"""The columns of a CSV file that are used in a regression of grouped data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.sources.header import Header, Name, header_of, matching
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.data.sources.table import Reading, read_columns, text_columns
from pyro_metabayes.errors import UsageError

Levels = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Rows:
    """The rows of a file as the data of a regression.

    Attributes:
        keys: [N], the group of each row.
        values: [N, D + 1], the D features and the response; the intercept is a feature that is 1.
        columns: [D + 1], names of the columns of `values`; features with group-specific weights come first.
        random: names of the features with group-specific weights.
        levels: levels of each column of text; the first is the reference, each other one has an indicator feature.
        notes: notes for the user, one line each.
    """

    keys: list[str]
    values: Tensor
    columns: list[str]
    random: list[str]
    levels: Levels
    notes: list[str]

    @property
    def features(self) -> list[str]:
        return self.columns[:-1]


@dataclass(frozen=True)
class ChosenColumns:
    """Names of the chosen columns as they are in the header; `random` names the group-specific weights."""

    header: Header
    group: str | None
    response: str
    predictors: Sequence[str]
    random: Sequence[str]
    factors: Sequence[str] = ()

    def read(self, missing: str, decimal: str, levels: Levels | None = None, optional: bool = False) -> Rows:
        """The rows of the file.

        Args:
            missing: "refuse" or "drop" rows with missing values (`Reading`).
            decimal: "point" or "comma".
            levels: levels of the columns of text in the training data; None: the levels of this file, sorted.
            optional: whether a missing response is allowed and becomes NaN.
        """
        columns = [*self.predictors, self.response]
        of_file = dict.fromkeys([*self.factors, *text_columns(self.header, self.predictors)]) if levels is None else {}
        texts = of_file if levels is None else levels
        reading = Reading(missing, decimal, texts, [self.response] if optional else [])
        read = read_columns(self.header, self.group, columns, reading)
        values = torch.from_numpy(read.values.copy())
        ordered = {name: sorted(of, key=_number_first) if levels is None else of for name, of in read.levels.items()}
        features = {INTERCEPT: {INTERCEPT: torch.ones(len(values), dtype=torch.float64)}}
        for place, name in enumerate(self.predictors):
            features[name] = {name: values[:, place]}
            if name in ordered:
                features[name] = _indicators(name, values[:, place], read.levels[name], ordered[name])
        own = [feature for name in self.random for feature in features[name]]
        others = [feature for name in features if name not in self.random for feature in features[name]]
        by_name = {name: column for group in features.values() for name, column in group.items()}
        notes = read.notes + (_notes(ordered) if levels is None else [])
        stacked = torch.stack([*(by_name[name] for name in (*own, *others)), values[:, -1]], -1)
        return Rows(read.keys, stacked, [*own, *others, self.response], own, ordered, notes)


def _indicators(name: str, places: Tensor, read: Sequence[str], levels: Sequence[str]) -> dict[str, Tensor]:
    """An indicator column (0 or 1) for each level except the first."""
    return {f"{name}={level}": (places == read.index(level)).double() for level in levels[1:]}


def _number_first(level: str) -> tuple[float, str]:
    """Sort key: levels that are numbers come first, in numerical order; the others follow in alphabetical order."""
    try:
        return float(level), ""
    except ValueError:
        return float("inf"), level


def _notes(levels: Levels) -> list[str]:
    return [
        f"column '{name}' has the levels {', '.join(of)}; the first is the reference" for name, of in levels.items()
    ]


def chosen_columns(
    file: Path,
    group: Name | Sequence[Name],
    response: Name,
    predictors: Sequence[Name],
    random: Sequence[Name],
    factors: Sequence[Name] = (),
    grouped: bool = True,
) -> ChosenColumns:
    """The columns that the settings name (`groups.load`); grouped: whether the file has the column of groups.

    Raises:
        UsageError: the file lacks a column, a column is named twice, or several columns of groups are named.
    """
    group = _one_group(file, group)
    header = header_of(file, [*([group] if grouped else []), *predictors, response])
    of_group = header.name_of(group) if grouped else None
    names, of_response = [*map(header.name_of, predictors)], header.name_of(response)
    own, texts = _random(random, names), [*map(header.name_of, factors)]
    _check_names(own, names, of_group, of_response)
    if other := [name for name in texts if name not in names]:
        raise UsageError(f"expected data.factors to name some of data.predictors, got '{other[0]}'")
    return ChosenColumns(header, of_group, of_response, names, own, texts)


def _one_group(file: Path, group: Name | Sequence[Name]) -> Name:
    """The column that data.group names; several columns (nested or crossed groups) raise a UsageError."""
    if group is None or isinstance(group, str | int | float):
        return group
    if len(group) != 1:
        header = header_of(file, group)
        names = [header.name_of(name) for name in group]
        kind = _kind_of_groups(header, names)
        raise UsageError(
            f"expected one column in data.group, got {' and '.join(names) or 'none'}, whose groups are {kind}: the "
            "model has effects of one grouping only; name one of them"
        )
    return group[0]


def _kind_of_groups(header: Header, names: Sequence[str]) -> str:
    """ "nested" if each group of one column lies within one group of the other, else "crossed"."""
    texts: dict[str, None] = dict.fromkeys(names)
    codes = read_columns(header, None, names, Reading(levels=texts)).values
    pairs = {(first, second) for first, second, *_ in codes.tolist()} if len(names) > 1 else set()
    smallest = [len({pair[i] for pair in pairs}) for i in (0, 1)]
    return "nested" if len(pairs) in smallest and pairs else "crossed"


def _random(random: Sequence[Name], predictors: Sequence[str]) -> list[str]:
    """The names in data.random, each of which must be "intercept" or a predictor."""
    there = [INTERCEPT, *dict.fromkeys(predictors)]
    if unknown := [name for name in random if not matching(name, there)]:
        raise UsageError(f"expected data.random to name some of {', '.join(there)}, got '{unknown[0]}'")
    if not random:
        raise UsageError("expected data.random to name the group-specific weights, got none; set it to [intercept]")
    return [matching(name, there)[0] for name in random]


def _check_names(random: Sequence[str], predictors: Sequence[str], group: str | None, response: str) -> None:
    every = [INTERCEPT, *predictors, *([] if group is None else [group]), response]
    if twice := [name for name in dict.fromkeys([*every, *random]) if every.count(name) > 1 or random.count(name) > 1]:
        raise UsageError(
            f"expected data.group, predictors, random and response to name each column once, got '{twice[0]}' "
            f"twice ('{INTERCEPT}' is the name of the constant)"
        )
