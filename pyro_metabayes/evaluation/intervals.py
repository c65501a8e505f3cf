"""Intervals of means over tasks."""

from __future__ import annotations

import math

import numpy as np


def ci95_of(values: np.ndarray) -> float:
    """Half width of the 95% interval of a mean over tasks: 1.96 sd / sqrt(number of tasks)."""
    return float(1.96 * values.std() / math.sqrt(len(values)))
