"""Scores of the closed form of a linear mixed model on tasks of groups, as experiments.evaluate computes for a run."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.exact.conjugate import output_variance_of_rows
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.prediction.averages import masked_mean


def predicted(fitted: MixedEffects, tasks: Episodes) -> Normal:
    """p(y | x_query, support) [T, Q] at the maximum-likelihood estimates, in float64."""
    effects = fitted.effects(tasks.observed())
    x = tasks.query_x.double()
    z = x[..., : len(fitted.covariance)]
    mean = z @ effects.mean.mT + fitted.shared(x)
    variance = output_variance_of_rows(effects, z) + fitted.noise**2
    return Normal(mean.squeeze(-1), variance.squeeze(-1).sqrt())


def scores_of(fitted: MixedEffects, tasks: Episodes) -> dict[str, float]:
    """rmse, nll and coverage90 of the standardised response: means over tasks of means over queries."""
    prediction, y = predicted(fitted, tasks), tasks.query_y[..., 0].double()
    pit = torch.special.ndtr((y - prediction.mean) / prediction.stddev)

    def over_tasks(values: Tensor) -> float:
        return masked_mean(values, tasks.query_mask).mean().item()

    return {
        "rmse": over_tasks((y - prediction.mean).square()) ** 0.5,
        "nll": -over_tasks(prediction.log_prob(y)),
        "coverage90": over_tasks(((pit > 0.05) & (pit < 0.95)).double()),
    }
