"""Notes about columns that a regression reads, but that probably mean something else."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from pyro_metabayes.data.sources.scales import Scales

MOST_CODES = 5  # number of consecutive whole values up to which a predictor may be codes of levels
OTHER_UNITS = 10.0  # distance of the means of two files, in sds, from which on their units probably differ


def notes_of_response(y: Tensor, name: str) -> list[str]:
    """Return a note for a response y [N] that Gaussian noise fits badly: two values, or whole numbers close to 0."""
    low, high = y.min().item(), y.max().item()
    fitted = "it is fitted with Gaussian noise of one sd, as if it were continuous and unbounded"
    if len(y.unique()) == 2:
        return [
            f"response '{name}' has two values, {low:g} and {high:g}: {fitted}; predictions are not probabilities; "
            "for 0 and 1 set data.family=bernoulli model=generalised_regression"
        ]
    near_zero = y.mean().item() < 3 * y.std(correction=0).item()
    if near_zero and low >= 0 and bool((y == y.round()).all()):
        return [
            f"response '{name}' has whole numbers from {low:g} to {high:g} only, such as counts or ratings: {fitted}"
        ]
    return []


def notes_of_codes(values: Tensor, columns: Sequence[str]) -> list[str]:
    """Return a note for each predictor [N] of values [N, D] that may be codes: a few consecutive whole numbers."""
    notes = []
    for name, column in zip(columns, values.unbind(1), strict=True):
        if ":" in name:  # a product of predictors, which cannot be a factor
            continue
        distinct = column.unique()
        gaps = distinct.diff()
        if 2 < len(distinct) <= MOST_CODES and bool((distinct == distinct.round()).all() and (gaps == 1).all()):
            notes.append(
                f"column '{name}' has {len(distinct)} whole values and is read as a number; data.factors=[{name}], or "
                f"factor({name}) in data.formula, treats it as a factor"
            )
    return notes


def notes_of_units(values: Tensor, scales: Scales, columns: Collection[str], family: str) -> list[str]:
    """Return a note for each of the columns whose mean is far from its mean in the training data.

    This points to different units. Missing values (NaN) are left out of the mean. A response that is not Gaussian is
    left out, since it is not standardised.

    Args:
        values: [N, D + 1], the D features and the response of N rows, without the offset of a Gaussian response.
        scales: means and sds of the training data.
        columns: names of the columns to compare.
        family: family of the response.
    """
    response = "" if family == "gaussian" else scales.columns[-1]
    means = values.nanmean(0)
    far = ((means - scales.mean) / scales.sd).abs() > OTHER_UNITS
    return [
        f"column '{name}' has mean {mean:g}, but the run was trained on mean {of_run:g} and sd {sd:g}; check that the "
        "units are the same"
        for name, is_far, mean, of_run, sd in zip(
            scales.columns, far.tolist(), means.tolist(), scales.mean.tolist(), scales.sd.tolist(), strict=True
        )
        if is_far and name in columns and name != response
    ]
