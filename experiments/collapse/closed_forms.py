"""Closed forms that the plots of experiments.collapse show beside measured values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def critical_samples(results: Mapping[str, Any], joint: bool) -> float:
    """Return the critical number of samples of objective=monte_carlo. With fewer samples of w the prior collapses.

        L_crit = 1 + noise^2 / (M v),    v = 1 / (1 / scale^2 + n / noise^2).

    noise and scale are settings of the data. v is the true variance of p(w | support) for n support points. M is the
    number of query points with objective.joint=true, else 1. docs/collapse.md derives L_crit.

    Args:
        results: results.json of a run on data=gaussian_mean.
        joint: whether the run was trained with objective.joint=true.
    """
    data, task = results["config"]["data"], results["config"]["task"]
    variance = 1 / (data["scale"] ** -2 + task["shot"] / data["noise"] ** 2)
    return float(1 + data["noise"] ** 2 / ((task["query"] if joint else 1) * variance))


def information(data: Mapping[str, Any], num_points: int) -> float:
    """Return the mutual information I(w; x) of the slope w and the inputs of a task, in nats.

        I(w; x) = log(1 + scale^2 / (n slope_scale^2)) / 2

    I(w; x) is the mean over tasks of KL(q, p_psi) if q is the exact posterior p(w | x), and the learned prior p_psi is
    the marginal distribution p(w).

    Args:
        data: the settings of data=spinning_lines, with the standard deviations `scale` and `slope_scale`.
        num_points: the number of inputs n of a task.
    """
    scale, slope_scale = data.get("scale", 1.0), data.get("slope_scale", 0.1)
    return float(0.5 * np.log1p(scale**2 / (num_points * slope_scale**2)))
