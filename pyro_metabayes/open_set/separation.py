"""Metrics of how well a score separates queries of unknown classes from other queries: AUROC, and FPR at 95% TPR.

A score s(x) is larger if the query is less similar to the classes of the support set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.prediction.averages import masked_mean

ACCEPTED = 0.95  # share of the known queries whose scores are at most the threshold


def auroc(scores: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """Compute the AUROC of each task: P(s(p) > s(n)) + P(s(p) = s(n)) / 2.

    p is a random positive query of the task, n a random negative one, and s the score. (Mann and Whitney 1947.)

    Args:
        scores: s of Q queries of T tasks [T, Q], any unit.
        negative, positive: masks [T, Q], true for the negative or positive queries.

    Returns:
        Tensor [T], 0 to 1; 1/2 if the score does not discriminate.
    """
    ordered, scores = _ordered(scores, negative), scores.contiguous()
    below, at_most = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
    return masked_mean((below + at_most).to(scores.dtype) / (2 * negative.sum(-1, keepdim=True)), positive)


def threshold(scores: Tensor, known: Tensor) -> Tensor:
    """Compute the smallest t with s(k) <= t for at least 95% of the queries k of known classes of a task.

    Args:
        scores: s of Q queries of T tasks [T, Q], any unit.
        known: mask [T, Q], true for queries of known classes.

    Returns:
        Tensor [T], in the unit of the scores.
    """
    number = (ACCEPTED * known.sum(-1, keepdim=True)).ceil().long()
    return _ordered(scores, known).gather(-1, number - 1).squeeze(-1)


def false_positive_rate(scores: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    """Compute the FPR at 95% TPR: the share of queries of unknown classes whose score is at most the threshold.

    The threshold accepts 95% of the queries of known classes (`threshold`). (Liang, Li and Srikant 2018.)

    Args:
        scores: s of Q queries of T tasks [T, Q], any unit.
        known, unknown: masks [T, Q], true for queries of known or unknown classes.

    Returns:
        Tensor [T], 0 to 1; 0.95 if the score does not discriminate.
    """
    accepted = scores <= threshold(scores, known).unsqueeze(-1)
    return masked_mean(accepted.to(scores.dtype), unknown)


def _ordered(scores: Tensor, mask: Tensor) -> Tensor:
    """Sort the scores of Q queries of T tasks [T, Q] in increasing order; masked queries come last, as infinity."""
    return scores.masked_fill(~mask, math.inf).sort(-1).values
