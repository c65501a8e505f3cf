"""Logarithmic scores, in nats, which are defined for predictions of every family."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.evaluation.score import Score
from pyro_metabayes.likelihoods.predictions import Predictions
from pyro_metabayes.prediction.averages import log_mean_exp, masked_mean


def nll(predictions: Predictions) -> Tensor:
    """-log (1/L) sum_l p(y_i | x_i, w_l), mean over the queries i. For numbers p is the density. (Good 1952)

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in nats per query.
    """
    return -masked_mean(log_mean_exp(predictions.log_prob), predictions.mask)


def joint_nll(predictions: Predictions) -> Tensor:
    """-(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l).

    Unlike nll it rewards predictions that model the dependence between the labels of a task. (Osband et al. 2022)

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in nats per query.
    """
    num_queries = predictions.mask.sum(-1).clamp(min=1)
    return -predictions.joint_log_prob / num_queries


FAMILY = (Predictions,)
LOG_SCORES = (
    Score("nll", nll, FAMILY, "nats per query", logged=2, by_step=2),
    Score("joint_nll", joint_nll, FAMILY, "nats per query"),
)
