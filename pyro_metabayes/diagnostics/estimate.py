"""A metric with its interval over tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_metabayes.evaluation.intervals import SMALL_SAMPLE, quantile95


@dataclass(frozen=True)
class Estimate:
    """A metric of any shape and the half width of its 95% interval."""

    mean: Tensor
    ci95: Tensor

    @classmethod
    def over_tasks(cls, values: Tensor) -> Estimate:
        """Mean over tasks of values [T, ...], and its interval, by Student's t below 30 tasks."""
        few = len(values) < SMALL_SAMPLE
        spread = values.std(0, correction=int(few)) / len(values) ** 0.5
        return cls(values.mean(0), (quantile95(len(values)) if len(values) > 1 else math.inf) * spread)
