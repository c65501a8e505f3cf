"""Standardised columns, and the way back of regression weights to the units of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

INTERCEPT = "intercept"  # the name of a feature that is always 1
Moments = Mapping[str, float]  # "mean" and "sd" of a column, or one of them


@dataclass(frozen=True)
class Scales:
    """Column j is read as (x_j - mean_j) / sd_j, in float64: the D features, then the response y.

    columns: their names [D + 1]; the intercept has mean 0 and sd 1.
    mean, sd: [D + 1], in the units of the file.

    A regression of the standardised columns with weights w is one of the file's columns with weights A w + b:
    slopes sd_y w_j / sd_j, and the intercept mean_y + sd_y (w_0 - sum_j w_j mean_j / sd_j), the response at x = 0.
    """

    columns: Sequence[str]
    mean: Tensor
    sd: Tensor

    @property
    def to_units(self) -> Tensor:
        """A [D, D]."""
        matrix = torch.diag(self.sd[-1] / self.sd[:-1])
        matrix[self._intercept] -= self.sd[-1] * (self.mean[:-1] / self.sd[:-1])
        return matrix

    def in_units(self, w: Tensor) -> Tensor:
        """A w + b [..., D], float64; its intercept is the response at x = 0."""
        at_zero = torch.zeros_like(self.mean[:-1])
        at_zero[self._intercept] = self.mean[-1]
        return w.double() @ self.to_units.mT + at_zero

    def effects_in_units(self, effects: Tensor, shared: Tensor) -> Tensor:
        """The first R weights [..., R], given the others [..., D - R], by which an intercept moves to x = 0."""
        shared = shared.expand(*effects.shape[:-1], -1)
        return self.in_units(torch.cat((effects, shared.to(effects)), -1))[..., : effects.shape[-1]]

    def covariance_in_units(self, covariance: Tensor) -> Tensor:
        """Covariance [..., K, K] of the first K weights, given the others."""
        size = covariance.shape[-1]
        matrix = self.to_units[:size, :size]
        return matrix @ covariance.double() @ matrix.mT

    def standardised(self, values: Tensor) -> Tensor:
        """Columns [N, D + 1] of the file, 1 for the intercept."""
        return (values - self.mean) / self.sd

    def with_response_of(self, family: str) -> Scales:
        """The same, with a response that is read as it stands if it is not Gaussian."""
        if family == "gaussian":
            return self
        mean, sd = self.mean.clone(), self.sd.clone()
        mean[-1], sd[-1] = 0.0, 1.0
        return Scales(self.columns, mean, sd)

    def moments(self) -> dict[str, dict[str, float]]:
        """Plain values by column, from which `scales_of` restores these scales."""
        rows = zip(self.columns, self.mean.tolist(), self.sd.tolist(), strict=True)
        return {name: {"mean": mean, "sd": sd} for name, mean, sd in rows if name != INTERCEPT}

    @property
    def _intercept(self) -> int:
        return self.columns.index(INTERCEPT)


def scales_of(values: Tensor, columns: Sequence[str], given: Mapping[str, Moments]) -> Scales:
    """Means and standard deviations of columns [N, D + 1], except for those that are given."""
    exponent = torch.frexp(values.abs().amax(0))[1].double().clamp(-1000, 1000)
    units = values.ldexp(-exponent)  # exact: squares of very large or small numbers are not finite, or 0
    mean, sd = units.mean(0).ldexp(exponent), units.std(0, correction=0).ldexp(exponent)
    place = columns.index(INTERCEPT)
    mean[place], sd[place] = 0.0, 1.0
    for name, moments in given.items():
        mean[columns.index(name)] = moments.get("mean", mean[columns.index(name)])
        sd[columns.index(name)] = moments.get("sd", sd[columns.index(name)])
    return Scales(columns, mean, sd)


def check_given(given: Mapping[str, Moments], columns: Sequence[str]) -> None:
    """Refuse what is no mean and sd of these columns."""
    there = [name for name in columns if name != INTERCEPT]
    for name, moments in given.items():
        numbers = isinstance(moments, Mapping) and all(
            isinstance(value, int | float) and math.isfinite(value) for value in moments.values()
        )
        if name not in there or not numbers or not {*moments} <= {"mean", "sd"} or moments.get("sd", 1.0) <= 0:
            raise UsageError(
                f"expected data.scales to hold mean and sd > 0 of columns among {', '.join(there)}, got {name}: "
                f"{moments}; start a new run"
            )
