"""Intervals of means over tasks."""

from __future__ import annotations

import math

import numpy as np


def ci95_of(values: np.ndarray) -> float:
    """1.96 sd / sqrt(T): half width of the 95% interval of a mean over tasks.

    Args:
        values: [T], one value per task, any unit.

    Returns:
        The half width, in the unit of the values.
    """
    return float(1.96 * values.std() / math.sqrt(len(values)))
