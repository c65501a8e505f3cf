"""Checks for columns that a regression in single precision cannot use: constant, collinear, or with extreme values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.sources.column_notes import notes_of_codes, notes_of_response
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.data.sources.scales import INTERCEPT, Moments, Scales, check_given, scales_of
from pyro_metabayes.errors import UsageError, check_choice

FAMILIES = ("gaussian", "bernoulli", "poisson")
COLLINEAR = 1e-6  # residual sd of a column given the others, relative to its sd, below which it is refused
NEARLY = 1e-2  # residual sd below which weights are poorly determined; only noted, since predictions may be good
FAR = 10.0  # distance of the mean from 0, in sds, from which on a slope without intercept is refused


def learnable_scales(
    rows: Tensor,
    columns: Sequence[str],
    random: Sequence[str],
    given: Mapping[str, Moments],
    file: Path,
    roles: Roles,
) -> Scales:
    """Check the columns, and return their scales, i.e. means and standard deviations.

    Scales that are not given are computed from the training rows.

    Args:
        rows: [N, D + 1], N rows of the training groups with D features and the response.
        columns: [D + 1], names of the columns.
        random: names of the features with group-specific weights.
        given: mean and sd of columns by name, in the units of the file.
        file: the file, for messages.
        roles: the settings that name the columns, for messages.

    Raises:
        UsageError: a column is constant. Or there are group-specific slopes without intercepts, and the mean of their
            column is far from 0.
    """
    check_given(given, columns)
    estimated = [place for place, name in enumerate(columns) if "sd" not in given.get(name, {})]
    refuse_constant(rows[:, estimated], [columns[place] for place in estimated], file)
    if given:
        return scales_of(rows, columns, given)
    refuse_far_from_zero(rows, columns, random, file, roles.setting_of("random"))
    through_zero = [] if INTERCEPT in random else random
    return scales_of(rows, columns, {name: {"mean": 0.0} for name in through_zero})


def refuse_constant(values: Tensor, columns: Sequence[str], file: Path) -> None:
    """Raise a UsageError if all values of a column are equal up to the precision of float64."""
    largest, spread = values.abs().amax(0), values.amax(0) - values.amin(0)
    for name, size, difference in zip(columns, largest.tolist(), spread.tolist(), strict=True):
        if name != INTERCEPT and 0 < difference <= 1e-12 * size:
            raise UsageError(
                f"expected numbers that differ by more than rounding errors in column '{name}' of {file}, got a range "
                f"of {difference:g} for numbers as large as {size:g}; subtract a constant from the column before "
                "writing the file"
            )
        if name != INTERCEPT and not 0 < difference < math.inf:
            raise UsageError(
                f"expected numbers that differ in column '{name}' of {file}, got a range of {difference:g} in the "
                "training groups; remove the column, or add groups"
            )


def refuse_far_from_zero(
    values: Tensor, columns: Sequence[str], random: Sequence[str], file: Path, setting: str
) -> None:
    """Raise a UsageError for group-specific slopes without intercepts if the mean of the column is far from 0.

    Without intercepts the lines of all groups meet at 0, far from the data. `setting` is the setting that lists the
    slopes, for messages.
    """
    as_list = f"set data.random=[{','.join((INTERCEPT, *random))}]"
    remedy = as_list if setting == "data.random" else "write (1 + ... | group) in place of (0 + ... | group)"
    for name in random:
        column = values[:, columns.index(name)]
        mean, sd = column.mean().item(), column.std(correction=0).item()
        if INTERCEPT not in random and abs(mean) > FAR * sd:
            raise UsageError(
                f"expected '{INTERCEPT}' beside '{name}' as random effects in {setting}, got only slopes: all lines "
                f"meet at {name} = 0, far from the data (mean {mean:g}, sd {sd:g} in {file}); {remedy}"
            )


def refuse_other_family(y: Tensor, family: str, name: str, file: Path) -> None:
    """Raise a UsageError if a value of the response y [N] is impossible under data.family."""
    check_choice("data.family", family, FAMILIES)
    whole = bool((y == y.round()).all()) and y.min().item() >= 0
    if (family == "bernoulli" and not (whole and y.max().item() <= 1)) or (family == "poisson" and not whole):
        kind = "0 and 1" if family == "bernoulli" else "counts 0, 1, 2, ..."
        raise UsageError(
            f"expected {kind} in column '{name}' of {file} for data.family={family}, got numbers from "
            f"{y.min().item():g} to {y.max().item():g}; fix data.family or the column"
        )


def notes_of_training(rows: Tensor, scales: Scales, file: Path, family: str, roles: Roles) -> list[str]:
    """Return notes about the columns [N, D + 1] of N training rows: D features and the response.

    Collinear predictors raise a UsageError.
    """
    about = notes_of_response(rows[:, -1], scales.columns[-1]) if family == "gaussian" else []
    about += notes_of_codes(rows[:, :-1], scales.columns[:-1])
    return about + check_collinear(scales.standardised(rows), scales, file, roles.setting_of("predictors"))


def check_collinear(standardised: Tensor, scales: Scales, file: Path, setting: str) -> list[str]:
    """Raise a UsageError if a predictor is a linear function of others; return a note if this is nearly so.

    Args:
        standardised: standardised columns [N, D + 1] of N training rows, D features and the response.
        scales: the scales by which the columns were standardised.
        file: the file, for the message.
        setting: where the predictors are named, for the message.

    Returns:
        At most one note.

    Raises:
        UsageError: a column is a linear function of others.
    """
    inputs, columns = standardised[:, :-1], scales.columns[:-1]
    order = sorted(range(len(columns)), key=lambda place: columns[place] != INTERCEPT)
    notes: list[str] = []
    for number, place in enumerate(order):
        before = order[:number]
        weights = torch.linalg.lstsq(inputs[:, before], inputs[:, place : place + 1], driver="gelsd").solution
        rest = (inputs[:, place : place + 1] - inputs[:, before] @ weights).square().mean().sqrt().item()
        if rest >= NEARLY or columns[place] == INTERCEPT:
            continue
        sharing = [columns[i] for i, weight in zip(before, weights[:, 0].tolist(), strict=True) if abs(weight) > 1e-3]
        others = " and ".join(f"'{name}'" for name in sharing if name != INTERCEPT)
        if rest < COLLINEAR:
            raise UsageError(
                f"expected predictors that are not collinear, got '{columns[place]}' as a linear function of {others} "
                f"in the training groups of {file}; remove one of these columns from {setting}"
            )
        notes.append(
            f"column '{columns[place]}' is nearly a linear function of {others} (residual {rest:.1g} of its sd), so "
            "their weights are poorly determined; remove one, or subtract the mean before taking squares and products"
        )
    return notes[:1]


def refuse_unresolved(standardised: Tensor, columns: Sequence[str], file: Path) -> None:
    """Raise a UsageError if a column keeps less than half of its distinct values in single precision.

    `standardised` has the standardised columns [N, D + 1] of N rows: D features and the response.
    """
    rounded = standardised.to(torch.get_default_dtype())
    for name, exact, kept in zip(columns, standardised.unbind(1), rounded.unbind(1), strict=True):
        before, after = len(exact.unique()), len(kept.unique())
        if 2 * after < before:
            raise UsageError(
                f"expected a column '{name}' of {file} without extreme values, got {before} different values, "
                f"only {after} in single precision; take logarithms, or remove rows with extreme values"
            )
