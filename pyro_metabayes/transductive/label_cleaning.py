"""Label cleaning for label propagation: class balancing, and selection of the queries to label next.

Lazarou, Stathaki and Avrithis, "Iterative Label Cleaning for Transductive and Semi-Supervised Few-Shot Learning", ICCV
2021 (arXiv 2012.07962).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.sinkhorn import class_term

MOMENTUM, DECAY, RATE = 0.9, 5e-4, 0.1  # settings of SGD in label cleaning, as published
LEAST = 1e-6  # lower bound on scores and on shares, so that their logarithms are finite


@dataclass(eq=False)
class Labelling:
    """State of iterative label cleaning, for T tasks with N points (the support set, then the queries).

    A query is open until the algorithm gives it a label.

    Attributes:
        labelled: [T, N], whether a point has a label.
        targets: [T, N, C], labels of the support points, and soft assignments of the queries to C classes.
        open_counts: [T, 1, C], assumed number of open queries of each class.
        active: [T, 1], whether the loop continues for a task.
    """

    labelled: Tensor
    targets: Tensor
    open_counts: Tensor
    active: Tensor


def initial_labelling(observed: Observed, x: Tensor) -> Labelling:
    """Return the state before the first round.

    Only the support set is labelled. Each class is assumed to have equally many queries.

    Args:
        observed: T tasks with S support points and Q queries.
        x: [T, S + Q, D], points of the tasks; only the number of tasks, dtype and device are used.
    """
    num_classes, num_queries = observed.num_classes, observed.query_x.shape[1]
    labels = one_hot(observed.support_y, num_classes).to(x.dtype)
    targets = torch.cat((labels, x.new_zeros(len(x), num_queries, num_classes)), dim=1)
    labelled = torch.cat((observed.support_mask, torch.zeros_like(observed.query_mask)), dim=1)
    counts = observed.query_mask.sum(-1).to(x.dtype) / num_classes
    return Labelling(
        labelled, targets, counts.view(-1, 1, 1).expand(-1, 1, num_classes), observed.query_mask.any(-1, True)
    )


def balanced(scores: Tensor, open_: Tensor, counts: Tensor, power: float) -> Tensor:
    """Balance the scores of open (unlabelled) queries by Sinkhorn's projection.

    The result is the transport plan P that is nearest to Z^power in KL, among plans with total 1 per query and the
    given totals per class.

    Args:
        scores: [T, N, C], scores Z of C classes for N points of T tasks.
        open_: [T, N], whether a point is an open query.
        counts: [T, 1, C], assumed number of open queries of each class, the class totals of P.
        power: exponent of the scores.

    Returns:
        P [T, N, C]; only the rows of open queries have a meaning.
    """
    scores = scores.clamp(min=0)
    scores = scores / scores.sum(-1, keepdim=True).clamp(min=LEAST)
    logits = power * scores.clamp(min=LEAST).log()
    shares = counts.clamp(min=LEAST)
    return (logits + class_term(logits, open_, shares / shares.sum(-1, keepdim=True))).softmax(-1)


def mean_losses(x: Tensor, labels: Tensor, mask: Tensor, start: Tensor, num_steps: int) -> Tensor:
    """Train a linear classifier per task by SGD, and return the cross-entropy of each point, averaged over the steps.

    SGD has momentum and weight decay, and minimises the mean cross-entropy over all points. In every step, the
    classifier has the form

        weights = a * start + beta^T x,   offsets = sum_i beta_i

    with a number a and a matrix beta [N, C] per task. The steps therefore need only inner products of points.

    Args:
        x: [T, N, D], N points of T tasks, with D features.
        labels: [T, N, C], one-hot labels for C classes.
        mask: [T, N], False for points that are not trained on.
        start: [T, C, D], weights before the first step; the offsets start at 0.
        num_steps: number of steps.

    Returns:
        Mean losses [T, N], in nats.
    """
    gram, initial = x @ x.mT + 1, x @ start.mT
    weight = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    beta, velocity, total = (torch.zeros_like(labels) for _ in range(3))
    kept, change = 1.0, 0.0  # a, and its momentum
    for _ in range(num_steps):
        log_p = (kept * initial + gram @ beta).log_softmax(-1)
        total -= log_p * labels
        velocity = MOMENTUM * velocity + (log_p.exp() - labels) * weight + DECAY * beta
        change = MOMENTUM * change + DECAY * kept
        beta, kept = beta - RATE * velocity, kept - RATE * change
    return total.sum(-1) / num_steps


def cleanest(losses: Tensor, labels: Tensor, open_: Tensor, per_class: int) -> Tensor:
    """Select the open (unlabelled) queries with the most reliable predicted labels.

    For each label, these are the `per_class` open queries with the smallest losses.

    Args:
        losses: [T, N], loss of each of N points of T tasks, in nats.
        labels: [T, N, C], one-hot predicted labels for C classes.
        open_: [T, N], whether a point is an open query.
        per_class: number of queries to select per class.

    Returns:
        Boolean tensor [T, N], True for the selected queries.
    """
    of_class = losses.unsqueeze(1).masked_fill(~((labels.mT > 0) & open_.unsqueeze(1)), torch.inf)  # [T, C, N]
    best = of_class.topk(min(per_class, losses.shape[-1]), dim=-1, largest=False)
    chosen = torch.zeros_like(of_class, dtype=torch.bool).scatter(-1, best.indices, best.values.isfinite())
    return chosen.any(1)
