"""Scores of predictions of numbers."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_metabayes.evaluation.score import Score, Weights, mean_over_tasks
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.prediction.pit import central_share


def mse(predictions: NumberPredictions) -> Tensor:
    """((1/L) sum_l mean_l - y)^2, mean over the outputs and the queries.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in the squared unit of y.
    """
    error = predictions.mean.mean(0) - predictions.labels
    return masked_mean(error.square().mean(-1), predictions.mask)


def coverage90(predictions: NumberPredictions) -> Tensor:
    """Share of the labels inside the central 90% of the predictive distribution, the mixture over the samples.

    A label is inside if its PIT, (1/L) sum_l F_l(y) for a continuous label, lies between 0.05 and 0.95. For counts the
    PIT is randomised, so that the share is 90% for calibrated predictions (`prediction/pit.py`).

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return masked_mean(central_share(predictions.pit_bounds, 0.9).mean(-1), predictions.mask)


def root_mean(values: Tensor) -> float:
    """sqrt((1/T) sum_t values_t).

    Args:
        values: [T], squared errors.

    Returns:
        A number in the unit of y, read on the host.
    """
    return math.sqrt(mean_over_tasks(values))


FAMILY = (NumberPredictions,)
REGRESSION = (
    Score("mse", mse, FAMILY, "squared unit of y", logged=3, by_step=1),
    Score("oracle_mse", mse, FAMILY, "squared unit of y", Weights.EXACT_MEAN),
    Score("coverage90", coverage90, FAMILY, "share", by_step=3),
)
RMSE = Score("rmse", mse, FAMILY, "unit of y", pooled=root_mean)
