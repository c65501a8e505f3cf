"""Scores of predicted class probabilities, task by task."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.data.vision import torchvision

CALIBRATION_BINS = 15


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true points: values and mask [..., Q] -> [...]."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """log (1/L) sum_l exp(values_l)."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


def classification_scores(log_probs: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Each score [T], from log p(y = c | x, w_l) [L, T, Q, C], labels and mask [T, Q].

    The prediction is the average of the probabilities over samples of w, never of the logits.
    accuracy: share of queries whose most probable class is right.
    nll: -log p(y_i | x_i, D), mean over queries, in nats.
    joint_nll: -(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l), in nats a query: unlike nll it
        rewards predictions whose errors hang together.
    brier: sum_c (p_c - [y = c])^2, mean over queries, 0 to 2.
    """
    predictive = log_mean_exp(log_probs)  # [T, Q, C]
    of_label = log_probs.gather(-1, labels.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    hits = predictive.argmax(-1) == labels
    error = predictive.exp() - torch.nn.functional.one_hot(labels, log_probs.shape[-1])
    num_queries = mask.sum(-1).clamp(min=1)
    return {
        "accuracy": masked_mean(hits.to(log_probs.dtype), mask),
        "nll": -masked_mean(log_mean_exp(of_label), mask),
        "joint_nll": -log_mean_exp((of_label * mask).sum(-1)) / num_queries,
        "brier": masked_mean(error.square().sum(-1), mask),
    }


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error, 15 equal bins, over all queries together: [M, C] and [M]."""
    torchvision()  # torchmetrics imports it in passing, and cannot by itself beside a CPU-only torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(
        probabilities, labels, num_classes=probabilities.shape[-1], n_bins=CALIBRATION_BINS
    ).item()


def ci95_of(values: np.ndarray) -> float:
    """Half width of the 95% interval of a mean over tasks: 1.96 sd / sqrt(number of tasks)."""
    return float(1.96 * values.std() / math.sqrt(len(values)))
