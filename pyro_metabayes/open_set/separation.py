"""How well a score separates queries of unknown classes from the others: AUROC, and FPR at 95% TPR.

A score s(x) is larger if the query is less like the classes of the support set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.prediction.averages import masked_mean

ACCEPTED = 0.95  # share of the known queries whose scores are at most the threshold


def auroc(scores: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """P(s(p) > s(n)) + P(s(p) = s(n)) / 2, p from the positive and n from the negative queries of a task.

    (Mann and Whitney 1947.)

    Args:
        scores: [T, Q], any unit.
        negative, positive: masks [T, Q].

    Returns:
        Tensor [T], 0 to 1; 1/2 if the score does not discriminate.
    """
    ordered, scores = _ordered(scores, negative), scores.contiguous()
    below, at_most = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
    return masked_mean((below + at_most).to(scores.dtype) / (2 * negative.sum(-1, keepdim=True)), positive)


def threshold(scores: Tensor, known: Tensor) -> Tensor:
    """The smallest t with P(s(k) <= t) >= 0.95, k from the known queries of a task.

    Args:
        scores: [T, Q], any unit.
        known: mask [T, Q].

    Returns:
        Tensor [T], in the unit of the scores.
    """
    number = (ACCEPTED * known.sum(-1, keepdim=True)).ceil().long()
    return _ordered(scores, known).gather(-1, number - 1).squeeze(-1)


def false_positive_rate(scores: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    """P(s(u) <= t), u from the unknown queries of a task and t the threshold: FPR at 95% TPR.

    It is the share of the unknown queries that are accepted if 95% of the known ones are (Liang, Li and Srikant 2018).

    Args:
        scores: [T, Q], any unit.
        known, unknown: masks [T, Q].

    Returns:
        Tensor [T], 0 to 1; 0.95 if the score does not discriminate.
    """
    accepted = scores <= threshold(scores, known).unsqueeze(-1)
    return masked_mean(accepted.to(scores.dtype), unknown)


def _ordered(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores of the unmasked queries in increasing order [T, Q], followed by infinities."""
    return scores.masked_fill(~mask, math.inf).sort(-1).values
