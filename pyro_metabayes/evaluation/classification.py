"""Scores of class probabilities.

Most scores use the averaged prediction p(c) = (1/L) sum_l p(y = c | x, w_l) over L draws w_l.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.evaluation.expected_calibration_error import pooled_calibration_error, values_for_calibration
from pyro_metabayes.evaluation.score import Score, Weights
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.prediction.averages import masked_mean


def accuracy(predictions: ClassPredictions) -> Tensor:
    """Compute the accuracy of the averaged prediction: the share of queries whose most probable class is correct.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return masked_mean(predictions.hits, predictions.mask)


def accuracy_of_sample(predictions: ClassPredictions) -> Tensor:
    """Compute the accuracy of the prediction p(y | x, w_l) of a single draw w_l, averaged over the L draws.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1; equal to `accuracy` if L = 1.
    """
    if predictions.is_point:
        return accuracy(predictions)
    return masked_mean(predictions.hits_by_sample.to(predictions.log_probs.dtype).mean(0), predictions.mask)


def brier(predictions: ClassPredictions) -> Tensor:
    """Compute the Brier score sum_c (p(c) - [y = c])^2 of the averaged prediction p, mean over the queries.

    (Brier 1950.)

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 2.
    """
    index = predictions.labels.unsqueeze(-1)
    minus_one = -torch.ones_like(index, dtype=predictions.averaged.dtype)
    error = predictions.averaged.exp().scatter_add(-1, index, minus_one)
    return masked_mean(error.square().sum(-1), predictions.mask)


def mutual_information(predictions: ClassPredictions) -> Tensor:
    """Compute the mutual information of query label and w (`ClassPredictions.information`), mean over the queries.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in nats per query; 0 if L = 1.
    """
    return masked_mean(predictions.information, predictions.mask)


FAMILY = (ClassPredictions,)
ACCURACIES = (
    Score("accuracy", accuracy, FAMILY, "share", interval=True, logged=1),
    Score("accuracy_of_mean", accuracy, FAMILY, "share", Weights.MEAN),
    Score("accuracy_of_sample", accuracy_of_sample, FAMILY, "share"),
)
CLASSIFICATION = (
    Score("brier", brier, FAMILY, "0 to 2"),
    Score("mutual_information", mutual_information, FAMILY, "nats per query", logged=4),
)
ECE = Score("ece", values_for_calibration, FAMILY, "share", pooled=pooled_calibration_error)
