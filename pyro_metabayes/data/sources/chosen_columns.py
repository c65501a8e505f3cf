"""The columns of a CSV file that are used in a regression of grouped data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.sources.header import Header, header_of, matching
from pyro_metabayes.data.sources.roles import PRODUCT, Roles, check_margins, check_names, term_of
from pyro_metabayes.data.sources.row_weights import check_weights
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.data.sources.table import Reading, read_columns, text_columns
from pyro_metabayes.errors import UsageError

Levels = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Rows:
    """Data of a regression, from the N rows of a file.

    Attributes:
        keys: [N], name of the group of each row.
        values: [N, D + 1], the D features and the response. One feature is the intercept, which is 1 in every row.
        columns: [D + 1], names of the columns of `values`; features with group-specific weights come first.
        random: names of the features with group-specific weights.
        levels: levels of each column of text. The first level is the reference; the others have indicator features.
        notes: notes for the user, one line each.
        weights: [N], precision weight of each row; None: all weights are 1.
        offset: [N], offset of each row; None: no offset.
        inner: [N], name of the inner group of each row, for nested groups.
    """

    keys: list[str]
    values: Tensor
    columns: list[str]
    random: list[str]
    levels: Levels
    notes: list[str]
    weights: Tensor | None = None
    offset: Tensor | None = None
    inner: list[str] | None = None

    @property
    def features(self) -> list[str]:
        return self.columns[:-1]

    def without_offset(self, family: str) -> Rows:
        """Return the rows with the offset subtracted from a Gaussian response; of another family, unchanged."""
        if self.offset is None or family != "gaussian":
            return self
        response = self.values[:, -1:] - self.offset.unsqueeze(-1)
        return replace(self, values=torch.cat((self.values[:, :-1], response), -1))


@dataclass(frozen=True)
class ChosenColumns:
    """Columns of a CSV file that a regression in groups uses, under their names in the header.

    `terms` lists the columns of each predictor: one column, or several for an interaction. `random` names the
    predictors with group-specific weights.
    """

    header: Header
    group: str | None
    response: str
    terms: Mapping[str, tuple[str, ...]]
    random: Sequence[str]
    factors: Sequence[str] = ()
    weights: str | None = None
    offset: str | None = None
    inner: str | None = None

    def read(self, missing: str, decimal: str, levels: Levels | None = None, optional: bool = False) -> Rows:
        """Read the rows of the file.

        Args:
            missing: "refuse" or "drop" rows with missing values.
            decimal: decimal separator, "point" or "comma".
            levels: levels of the columns of text in the training data; None: the levels of this file, sorted.
            optional: whether a missing response is allowed and becomes NaN.
        """
        inputs = list(dict.fromkeys(name for term in self.terms.values() for name in term))
        beside = [name for name in (self.weights, self.offset, self.inner) if name is not None]
        of_file = dict.fromkeys([*self.factors, *text_columns(self.header, inputs)]) if levels is None else {}
        texts = of_file if levels is None else levels
        of_inner: dict[str, None] = {} if self.inner is None else {self.inner: None}
        predictors, responses = inputs if levels is None else [], [self.response] if optional else []
        reading = Reading(missing, decimal, {**texts, **of_inner}, responses, predictors)
        read = read_columns(self.header, self.group, [*inputs, *beside, self.response], reading)
        numbers = dict(
            zip([*inputs, *beside, self.response], torch.from_numpy(read.values.copy()).unbind(1), strict=True)
        )
        ordered = {
            name: sorted(of, key=_number_first) if levels is None else of
            for name, of in read.levels.items()
            if name != self.inner
        }
        columns = {name: {name: numbers[name]} for name in inputs}
        columns |= {name: _indicators(name, numbers[name], read.levels[name], of) for name, of in ordered.items()}
        features = {INTERCEPT: {INTERCEPT: torch.ones(len(read.keys), dtype=torch.float64)}}
        features |= {name: _products([columns[part] for part in term]) for name, term in self.terms.items()}
        own = [feature for name in self.random for feature in features[name]]
        others = [feature for name in features if name not in self.random for feature in features[name]]
        by_name = {name: column for group in features.values() for name, column in group.items()}
        notes = read.notes + (_notes(ordered) if levels is None else [])
        stacked = torch.stack([*(by_name[name] for name in (*own, *others)), numbers[self.response]], -1)
        weights, offset = (None if name is None else numbers[name] for name in (self.weights, self.offset))
        if weights is not None:
            check_weights(weights, str(self.weights), self.header.path)
        inner = None if self.inner is None else [read.levels[self.inner][int(i)] for i in numbers[self.inner].tolist()]
        return Rows(read.keys, stacked, [*own, *others, self.response], own, ordered, notes, weights, offset, inner)


def _products(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the features of an interaction by name, such as "a:b=2": products of one feature of each column."""
    found = dict(parts[0])
    for part in parts[1:]:
        found = {f"{one}{PRODUCT}{other}": x * z for one, x in found.items() for other, z in part.items()}
    return found


def _indicators(name: str, places: Tensor, read: Sequence[str], levels: Sequence[str]) -> dict[str, Tensor]:
    """Return an indicator feature (0 or 1) for each level of a column of text except the first."""
    return {f"{name}={level}": (places == read.index(level)).double() for level in levels[1:]}


def _number_first(level: str) -> tuple[float, str]:
    """Return a sort key that puts numbers first, in numerical order, and then other levels, in alphabetical order."""
    try:
        return float(level), ""
    except ValueError:
        return float("inf"), level


def _notes(levels: Levels) -> list[str]:
    return [
        f"column '{name}' has the levels {', '.join(of)}; the first is the reference" for name, of in levels.items()
    ]


def chosen_columns(file: Path, roles: Roles, grouped: bool = True) -> ChosenColumns:
    """Find the columns that `roles` names in a file. With grouped=False the file needs no group column.

    Raises:
        UsageError: the file lacks a column, or a column is named twice.
    """
    header, at = header_of(file, [*([roles.group] if grouped else []), *roles.read]), roles.setting_of
    of_group = header.name_of(roles.group, at("group")) if grouped else None
    found = [term_of(name, header, at("predictors")) for name in roles.predictors]
    response, names = header.name_of(roles.response, at("response")), [PRODUCT.join(term) for term in found]
    own, texts = _random(roles, names), [header.name_of(name, at("factors")) for name in roles.factors]
    weights, offset, inner = (
        None if name is None else header.name_of(name, at(role))
        for role, name in (("weights", roles.weights), ("offset", roles.offset), ("inner", roles.inner))
    )
    once = {"group": of_group, "inner": inner, "response": response, "weights": weights, "offset": offset}
    check_names(roles, {role: name for role, name in once.items() if name is not None}, found, own)
    check_margins(found)
    if other := [name for name in texts if not any(name in term for term in found)]:
        raise UsageError(f"expected data.factors among data.predictors, got '{other[0]}'; add it to data.predictors")
    terms = dict(zip(names, found, strict=True))
    return ChosenColumns(header, of_group, response, terms, own, texts, weights, offset, inner)


def _random(roles: Roles, predictors: Sequence[str]) -> list[str]:
    """Return the names in data.random, each of which must be "intercept" or a predictor."""
    there = [INTERCEPT, *dict.fromkeys(predictors)]
    if unknown := [name for name in roles.random if not matching(name, there)]:
        raise UsageError(f"expected names among {', '.join(there)} in data.random, got '{unknown[0]}'; fix data.random")
    if not roles.random:
        raise UsageError("expected group-specific weights in data.random, got none; set data.random=[intercept]")
    return [matching(name, there)[0] for name in roles.random]
