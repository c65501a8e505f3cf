"""Scores of regression: mean squared error, coverage of 90% intervals, root mean square error."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_metabayes.evaluation.score import Score, Weights, mean_over_tasks
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.prediction.pit import central_share


def mse(predictions: NumberPredictions) -> Tensor:
    """Compute the squared error ((1/L) sum_l mean_l - y)^2 of the averaged predictive mean.

    The result is a mean over outputs and queries.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in the squared unit of y.
    """
    error = predictions.mean.mean(0) - predictions.labels
    return masked_mean(error.square().mean(-1), predictions.mask)


def coverage90(predictions: NumberPredictions) -> Tensor:
    """Compute the share of labels inside the central 90% interval of the predictive distribution.

    The predictive distribution is the mixture over L draws of w, with CDF F = (1/L) sum_l F_l. A label y is inside if
    the probability integral transform (PIT) lies between 0.05 and 0.95. The PIT is F(y) for a continuous label, and is
    randomised for counts (`prediction/pit.py`). Calibrated predictions have a share of 90%.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return masked_mean(central_share(predictions.pit_bounds, 0.9).mean(-1), predictions.mask)


def root_mean(values: Tensor) -> float:
    """Compute the root mean square error sqrt((1/T) sum_t values_t) over T tasks.

    Args:
        values: [T], mean squared error of each task.

    Returns:
        A Python number in the unit of y.
    """
    return math.sqrt(mean_over_tasks(values))


FAMILY = (NumberPredictions,)
REGRESSION = (
    Score("mse", mse, FAMILY, "squared unit of y", logged=3, by_step=1),
    Score("oracle_mse", mse, FAMILY, "squared unit of y", Weights.EXACT_MEAN),
    Score("coverage90", coverage90, FAMILY, "share", by_step=3),
)
RMSE = Score("rmse", mse, FAMILY, "unit of y", pooled=root_mean)
