"""Standardises columns, and converts regression weights back to the units of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

INTERCEPT = "intercept"  # the name of a feature that is always 1
Moments = Mapping[str, float]  # "mean" and "sd" of a column, or one of them


@dataclass(frozen=True)
class Scales:
    """Means and standard deviations of the columns of a regression: D features and the response y.

    Column j is standardised to (x_j - mean_j) / sd_j in float64. A regression with weights w on standardised columns
    has the weights A w + b in the units of the file:

        slope_j   = sd_y w_j / sd_j
        intercept = mean_y + sd_y (w_0 - sum_j w_j mean_j / sd_j), the response at x = 0.

    Args:
        columns: [D + 1], names; the intercept has mean 0 and sd 1.
        mean: [D + 1], in the units of the file.
        sd: [D + 1], in the units of the file.
        offset: mean offset of the rows if the response is not Gaussian, else 0. The weight w_0 includes this mean.
        weight: mean weight of the rows.
    """

    columns: Sequence[str]
    mean: Tensor
    sd: Tensor
    offset: float = 0.0
    weight: float = 1.0

    @property
    def to_units(self) -> Tensor:
        """Matrix A [D, D] that converts D weights of standardised columns to the units of the file."""
        matrix = torch.diag(self.sd[-1] / self.sd[:-1])
        matrix[self._intercept] -= self.sd[-1] * (self.mean[:-1] / self.sd[:-1])
        return matrix

    def in_units(self, w: Tensor) -> Tensor:
        """Convert weights w [..., D] of D standardised features to the units of the file.

        The intercept becomes the response at x = 0.
        """
        at_zero = torch.zeros_like(self.mean[:-1])
        at_zero[self._intercept] = self.mean[-1] - self.offset
        return w.double() @ self.to_units.mT + at_zero

    def effects_in_units(self, effects: Tensor, shared: Tensor) -> Tensor:
        """Convert the group-specific weights of a regression to the units of the file.

        Args:
            effects: [..., R], the R group-specific weights, which are the first of the D weights.
            shared: [..., D - R], the weights that all groups share. They enter the intercept at x = 0.
        """
        shared = shared.expand(*effects.shape[:-1], -1)
        return self.in_units(torch.cat((effects, shared.to(effects)), -1))[..., : effects.shape[-1]]

    def covariance_in_units(self, covariance: Tensor) -> Tensor:
        """Convert a covariance [..., K, K] of the first K weights, given the others, to the units of the file."""
        size = covariance.shape[-1]
        matrix = self.to_units[:size, :size]
        return matrix @ covariance.double() @ matrix.mT

    def standardised(self, values: Tensor) -> Tensor:
        """Standardise N rows of the file [N, D + 1]: D features, with 1 as the intercept, and the response."""
        return (values - self.mean) / self.sd

    def with_response_of(self, family: str) -> Scales:
        """Return the scales with mean 0 and sd 1 for the response if the family is not Gaussian."""
        if family == "gaussian":
            return self
        mean, sd = self.mean.clone(), self.sd.clone()
        mean[-1], sd[-1] = 0.0, 1.0
        return replace(self, mean=mean, sd=sd)

    def moments(self) -> dict[str, dict[str, float]]:
        """Return mean and sd of each column as plain values, from which `scales_of` restores these scales."""
        rows = zip(self.columns, self.mean.tolist(), self.sd.tolist(), strict=True)
        return {name: {"mean": mean, "sd": sd} for name, mean, sd in rows if name != INTERCEPT}

    @property
    def _intercept(self) -> int:
        return self.columns.index(INTERCEPT)


def scales_of(values: Tensor, columns: Sequence[str], given: Mapping[str, Moments]) -> Scales:
    """Compute the means and standard deviations of columns [N, D + 1] of N rows.

    Means and sds in `given`, by name of the column, replace the computed ones.
    """
    exponent = torch.frexp(values.abs().amax(0))[1].double().clamp(-1000, 1000)
    units = values.ldexp(-exponent)  # exact; prevents overflow and underflow of squares
    mean, sd = units.mean(0).ldexp(exponent), units.std(0, correction=0).ldexp(exponent)
    place = columns.index(INTERCEPT)
    mean[place], sd[place] = 0.0, 1.0
    for name, moments in given.items():
        mean[columns.index(name)] = moments.get("mean", mean[columns.index(name)])
        sd[columns.index(name)] = moments.get("sd", sd[columns.index(name)])
    return Scales(columns, mean, sd)


def check_given(given: Mapping[str, Moments], columns: Sequence[str]) -> None:
    """Check that `given` has the mean, the sd or both of some of the columns, else raise a UsageError."""
    there = [name for name in columns if name != INTERCEPT]
    for name, moments in given.items():
        numbers = isinstance(moments, Mapping) and all(
            isinstance(value, int | float) and math.isfinite(value) for value in moments.values()
        )
        if name not in there or not numbers or not {*moments} <= {"mean", "sd"} or moments.get("sd", 1.0) <= 0:
            raise UsageError(
                f"expected data.scales to have mean and sd > 0 of some of the columns {', '.join(there)}, got {name}: "
                f"{moments}; remove data.scales, or start a new run"
            )
