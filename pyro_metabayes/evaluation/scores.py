"""The registry of all scores. A new score is a function with an entry in the list of a family of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.evaluation.base_novel import BASE_NOVEL
from pyro_metabayes.evaluation.classification import ACCURACIES, CLASSIFICATION, ECE
from pyro_metabayes.evaluation.expected_calibration_error import (
    CALIBRATION_BINS,
    calibration_error,
    confidence_and_hits,
)
from pyro_metabayes.evaluation.log_scores import LOG_SCORES
from pyro_metabayes.evaluation.regression import REGRESSION, RMSE
from pyro_metabayes.evaluation.score import Score, TaskScores, Weights
from pyro_metabayes.evidence.joint import JointPredictive
from pyro_metabayes.likelihoods.predictions import Predictions, predictions_of
from pyro_metabayes.open_set.scores import OPEN_SET
from pyro_metabayes.prediction.averages import log_mean_exp, masked_mean, most_probable

__all__ = [
    "CALIBRATION_BINS",
    "SCORES",
    "calibration_error",
    "confidence_and_hits",
    "log_mean_exp",
    "logged_scores",
    "masked_mean",
    "most_probable",
    "scores_of",
    "step_scores",
    "values_of",
]

# In the order of results.json.
SCORES: list[Score[Any]] = [*ACCURACIES, *LOG_SCORES, *CLASSIFICATION, *REGRESSION, *BASE_NOVEL, *OPEN_SET, RMSE, ECE]


def logged_scores() -> list[Score[Any]]:
    """Return the scores in each line of metrics.jsonl, in the order of the line."""
    return sorted((score for score in SCORES if score.logged), key=lambda score: score.logged)


def step_scores() -> list[Score[Any]]:
    """Return the scores of a regression that are computed after each inner step, in the order of `Score.by_step`."""
    return sorted((score for score in SCORES if score.by_step), key=lambda score: score.by_step)


def values_of(predictions: Predictions | JointPredictive, weights: Weights, scores: Iterable[Score[Any]]) -> TaskScores:
    """Compute the requested scores; scores that are not defined for the predictions are left out.

    Args:
        predictions: predictions for T tasks.
        weights: the weights w under which the predictions were computed.
        scores: the requested scores.

    Returns:
        Tensors [T] by name of the score, on the device of the predictions. The tensor of ece is [T, Q, 3] for Q
        queries.
    """
    return {score.name: score.per_task(predictions) for score in scores if score.applies_to(predictions, weights)}


def scores_of(likelihood: TorchDistribution, y: Tensor, mask: Tensor) -> TaskScores:
    """Compute all scores that have one value per task, of predictions under draws of w.

    Args:
        likelihood: p(y | x, w_l) for L draws w_l, batch [L, T, Q]. Its family determines which scores are defined.
        y: labels of the Q queries of T tasks, [T, Q] classes or [T, Q, Y] numbers.
        mask: [T, Q], False for masked queries, which have no effect.

    Returns:
        Tensors [T] by name of the score, on the device of the likelihood, in the unit `Score.unit`.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`).
    """
    means = (score for score in SCORES if score.is_mean)
    return values_of(predictions_of(likelihood, y, mask), Weights.DRAWS, means)
