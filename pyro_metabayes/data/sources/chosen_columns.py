"""The columns of a CSV file that a regression in groups reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.sources.csv_rows import Header, Name, header_of, matching
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.data.sources.table import read_columns
from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class ChosenColumns:
    """Names of columns as the header has them.

    features: the D features, those with group-specific weights first; one of them is the intercept.
    random: the features with group-specific weights.
    """

    header: Header
    group: str
    response: str
    features: Sequence[str]
    random: Sequence[str]

    @property
    def columns(self) -> list[str]:
        """The features and the response [D + 1]."""
        return [*self.features, self.response]

    def read(self, missing: str, decimal: str) -> tuple[list[str], Tensor, list[str]]:
        """The group of each row, its columns [N, D + 1] with 1 for the intercept, and notes."""
        there = [place for place, name in enumerate(self.columns) if name != INTERCEPT]
        numbers = [self.columns[place] for place in there]
        keys, cells, notes = read_columns(self.header, self.group, numbers, missing, decimal)
        values = torch.ones(len(keys), len(self.columns), dtype=torch.float64)
        values[:, there] = torch.from_numpy(cells)
        return keys, values, notes


def chosen_columns(
    file: Path, group: Name, response: Name, predictors: Sequence[Name], random: Sequence[Name]
) -> ChosenColumns:
    """The columns that the settings name.

    Raises:
        UsageError: a column that the file does not have, or that is named twice.
    """
    header = header_of(file, [group, *predictors, response])
    of_group, names, of_response = (
        header.name_of(group),
        list(map(header.name_of, predictors)),
        header.name_of(response),
    )
    own = _random(random, names)
    _check_names(own, names, of_group, of_response)
    features = [*own, *(name for name in (INTERCEPT, *names) if name not in own)]
    return ChosenColumns(header, of_group, of_response, features, own)


def _random(random: Sequence[Name], predictors: Sequence[str]) -> list[str]:
    """The texts of data.random, among the intercept and the predictors."""
    there = [INTERCEPT, *dict.fromkeys(predictors)]
    if unknown := [name for name in random if not matching(name, there)]:
        raise UsageError(f"expected data.random to name some of {', '.join(there)}, got '{unknown[0]}'")
    if not random:
        raise UsageError("expected data.random to name what differs from group to group, got nothing; take [intercept]")
    return [matching(name, there)[0] for name in random]


def _check_names(random: Sequence[str], predictors: Sequence[str], group: str, response: str) -> None:
    every = [INTERCEPT, *predictors, group, response]
    if twice := [name for name in dict.fromkeys([*every, *random]) if every.count(name) > 1 or random.count(name) > 1]:
        raise UsageError(
            f"expected each of data.group, predictors, random and response to be another column, got '{twice[0]}' "
            f"twice ('{INTERCEPT}' is the name of the constant)"
        )
