"""95% intervals of a mean over tasks and of a mean over training runs.

The interval over tasks is conditional on the learner and the test classes. With probability 95% it contains the mean
over all tasks of these classes. The interval over training runs also contains the variation between backbones and
training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

NORMAL = 1.96
SMALL_SAMPLE = 30  # units below which Student's t is used
# 97.5% quantiles of Student's t with 1, 2, ..., 28 degrees of freedom.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
)  # fmt: skip


class RunsInterval(NamedTuple):
    """A mean over training runs with its 95% interval.

    Attributes:
        mean: the mean.
        ci95: half width of the 95% interval; None for a single run.
        unit: the independent units of the interval: "backbone", or "seed" if all runs share one backbone. An interval
            over seeds is conditional on the backbone.
    """

    mean: float
    ci95: float | None
    unit: str

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.ci95 is not None and abs(self.mean) > self.ci95


def quantile95(units: int) -> float:
    """Return the half width of a 95% interval in standard errors: 1.96, or Student's t for fewer than 30 units.

    Args:
        units: number of independent units, at least 2.
    """
    return STUDENT[units - 2] if units < SMALL_SAMPLE else NORMAL


def ci95_of(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Compute the half width of the 95% interval of a mean over T tasks, conditional on backbone and classes.

        half width = quantile * standard error

    The quantile is 1.96 for at least 30 independent units, else the quantile of Student's t (`quantile95`). The units
    are the T tasks, or G groups of dependent tasks. The standard error is

        tasks:  sd / sqrt(T), where sd^2 has the denominator T - 1 for Student's t
        groups: sqrt(G / (G - 1) sum_g (sum_{t in g} r_t)^2) / T, where r_t is the residual of task t.

    (Liang and Zeger 1986.)

    Args:
        values: [T], one value per task, any unit.
        groups: [T], the group of each task; None: all tasks are independent.

    Returns:
        The half width, in the unit of the values; infinite for a single task or a single group.
    """
    if groups is None:
        few = len(values) < SMALL_SAMPLE
        if len(values) < 2:
            return math.inf
        return float(quantile95(len(values)) * values.std(ddof=int(few)) / math.sqrt(len(values)))
    residuals = values - values.mean()
    sums = np.array([residuals[groups == group].sum() for group in np.unique(groups)])
    if len(sums) < 2:
        return math.inf
    variance = len(sums) / (len(sums) - 1) * float(np.square(sums.astype(np.float64)).sum())
    return quantile95(len(sums)) * math.sqrt(variance) / len(values)


def over_runs(means: Sequence[float], backbones: Sequence[str]) -> RunsInterval:
    """Compute the mean over training runs, each with a backbone and a seed, and the 95% interval of the mean.

    With several backbones, the averaged values are the B means over the runs of a backbone. With one backbone, the
    averaged values are those of the B runs. The half width is t sd / sqrt(B), with Student's t of B - 1 degrees of
    freedom (as in `ci95_of`, 1.96 instead of t for B >= 30).

    To compare two methods, pass the differences between runs with the same backbone and seed.

    Args:
        means: one value per run: a mean over tasks, or a difference of two such means.
        backbones: the name of the backbone of each run.
    """
    names = list(dict.fromkeys(backbones))
    units: list[float] = list(means)
    if len(names) > 1:
        units = [float(np.mean([m for m, own in zip(means, backbones, strict=True) if own == name])) for name in names]
    values = np.array(units, dtype=np.float64)
    return RunsInterval(
        float(values.mean()), ci95_of(values) if len(values) > 1 else None, "backbone" if len(names) > 1 else "seed"
    )


@dataclass(frozen=True)
class Estimate:
    """A metric and the half width of the 95% interval, as tensors of one shape."""

    mean: Tensor
    ci95: Tensor

    @classmethod
    def over_tasks(cls, values: Tensor) -> Estimate:
        """Compute the mean and the 95% interval of values [T, ...] over T tasks (Student's t for T < 30)."""
        few = len(values) < SMALL_SAMPLE
        spread = values.std(0, correction=int(few)) / len(values) ** 0.5
        return cls(values.mean(0), (quantile95(len(values)) if len(values) > 1 else math.inf) * spread)
