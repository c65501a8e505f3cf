"""Closed forms that the plots of a study show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def critical_samples(results: Mapping[str, Any], joint: bool) -> float:
    """The number of samples L below which the prior must collapse (docs/collapse.md):

    L_crit = 1 + noise^2 / (M_eff v), v = 1 / (1 / scale^2 + n / noise^2), for n shots. M_eff is the number of query
    points for the joint objective, else 1.
    """
    data, task = results["config"]["data"], results["config"]["task"]
    variance = 1 / (data["scale"] ** -2 + task["shot"] / data["noise"] ** 2)
    return float(1 + data["noise"] ** 2 / ((task["query"] if joint else 1) * variance))


def information(data: Mapping[str, Any], num_points: int) -> float:
    """I(w; x) = log(1 + scale^2 / (n slope_scale^2)) / 2 nats: the optimal KL(q, p_psi)."""
    scale, slope_scale = data.get("scale", 1.0), data.get("slope_scale", 0.1)
    return float(0.5 * np.log1p(scale**2 / (num_points * slope_scale**2)))
