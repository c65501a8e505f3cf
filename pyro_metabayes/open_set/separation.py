"""Metrics of the separation of unknown from known classes: AUROC, and false positive rate at 95% true positive rate.

A score s(x) is larger if the query x is less similar to the classes of the support set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.prediction.averages import masked_mean

ACCEPTED = 0.95  # share of the known queries whose scores are at most the threshold


def auroc(scores: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """Compute the AUROC of each task: P(s(p) > s(n)) + P(s(p) = s(n)) / 2.

    p is a random positive query of the task, n a random negative query, and s the score. (Mann and Whitney 1947.)

    Args:
        scores: [T, Q], score of Q queries of T tasks, any unit.
        negative: mask [T, Q], True for negative queries.
        positive: mask [T, Q], True for positive queries.

    Returns:
        Tensor [T], 0 to 1; 1/2 if the score does not discriminate.
    """
    ordered, scores = _ordered(scores, negative), scores.contiguous()
    below, at_most = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
    return masked_mean((below + at_most).to(scores.dtype) / (2 * negative.sum(-1, keepdim=True)), positive)


def threshold(scores: Tensor, known: Tensor) -> Tensor:
    """Compute the smallest threshold t with s(k) <= t for at least 95% of the queries k of known classes.

    Args:
        scores: [T, Q], score s of Q queries of T tasks, any unit.
        known: mask [T, Q], True for queries of known classes.

    Returns:
        Tensor [T], in the unit of the scores.
    """
    number = (ACCEPTED * known.sum(-1, keepdim=True)).ceil().long()
    return _ordered(scores, known).gather(-1, number - 1).squeeze(-1)


def false_positive_rate(scores: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    """Compute the false positive rate (FPR) at 95% true positive rate of each task.

    This is the share of queries of unknown classes with a score up to the `threshold`, which accepts 95% of the queries
    of known classes. (Liang, Li and Srikant 2018.)

    Args:
        scores: [T, Q], score of Q queries of T tasks, any unit.
        known: mask [T, Q], True for queries of known classes.
        unknown: mask [T, Q], True for queries of unknown classes.

    Returns:
        Tensor [T], 0 to 1; 0.95 if the score does not discriminate.
    """
    accepted = scores <= threshold(scores, known).unsqueeze(-1)
    return masked_mean(accepted.to(scores.dtype), unknown)


def _ordered(scores: Tensor, mask: Tensor) -> Tensor:
    """Sort the scores [T, Q] of each task in increasing order; masked queries come last, as infinity."""
    return scores.masked_fill(~mask, math.inf).sort(-1).values
