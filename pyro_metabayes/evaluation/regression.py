"""Scores of predictions of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.evaluation.predictions import RealPredictions
from pyro_metabayes.evaluation.score import Score, Weights, mean_over_tasks
from pyro_metabayes.prediction.averages import masked_mean


def mse(predictions: RealPredictions) -> Tensor:
    """((1/L) sum_l mean_l - y)^2, mean over the outputs and the queries.

    Args:
        predictions: of L samples and T tasks.

    Returns:
        Tensor [T], in the squared unit of y.
    """
    error = predictions.mean.mean(0) - predictions.labels
    return masked_mean(error.square().mean(-1), predictions.mask)


def coverage90(predictions: RealPredictions) -> Tensor:
    """Share of the labels inside the central 90% of the predictive distribution, the mixture over the samples.

    Inside: 0.05 <= (1/L) sum_l Phi((y - mean_l) / sd_l) <= 0.95.

    Args:
        predictions: of L samples and T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    y = predictions.labels
    below = torch.special.ndtr((y - predictions.mean) / predictions.sd).mean(0)
    inside = ((below >= 0.05) & (below <= 0.95)).to(y.dtype)
    return masked_mean(inside.mean(-1), predictions.mask)


def root_mean(values: Tensor) -> float:
    """sqrt((1/T) sum_t values_t).

    Args:
        values: [T], squared errors.

    Returns:
        A number in the unit of y, read on the host.
    """
    return math.sqrt(mean_over_tasks(values))


FAMILY = (RealPredictions,)
REGRESSION = (
    Score("mse", mse, FAMILY, "squared unit of y", logged=3, by_step=1),
    Score("oracle_mse", mse, FAMILY, "squared unit of y", Weights.EXACT_MEAN),
    Score("coverage90", coverage90, FAMILY, "share", by_step=3),
)
RMSE = Score("rmse", mse, FAMILY, "unit of y", pooled=root_mean)
