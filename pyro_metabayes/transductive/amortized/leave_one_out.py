"""Statistics of a task that measure how well class means predict the labels of left-out support points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.transductive.amortized.task_geometry import cosines_without

NUM_LEFT_OUT = 4
SCALE = 10.0  # of the cosines in the predictions of left-out points, as in the first step before training


def left_out_statistics(x: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Compute 4 statistics of each task from predictions of left-out support points.

    Each support point is left out once: the mean of its class is computed from the other points of the class. The
    class probabilities of the point are softmax(10 cosines with the class means). A point that is alone in its class
    is not counted. The statistics are

        skill: (a - 1/C) / (1 - 1/C), where a is the accuracy for C classes
        log-likelihood of the labels relative to guessing: 1 + mean(log p_y) / log(C), where y is the label
        margin: 5 mean(cosine with the mean of the own class - largest cosine with the mean of another class)
        share of the support points that are counted

    All are 0 for a task where no point is counted.

    Args:
        x: [T, S, D], support points of unit length.
        labels: [T, S, C], one-hot labels of the support points for C classes, 0 for masked points.
        means: [T, C, D], class means of the support set.

    Returns:
        Tensor [T, NUM_LEFT_OUT].
    """
    way, number = labels.shape[-1], labels.sum(1, keepdim=True)
    cosines = cosines_without(x, x @ means.mT, means.norm(dim=-1), labels / number.clamp(min=1))
    own = (labels * cosines).sum(-1)
    other = cosines.masked_fill(labels > 0, -torch.inf).amax(-1)
    fit = (labels * (SCALE * cosines).log_softmax(-1)).sum(-1)
    skill = ((own > other).to(own.dtype) * way - 1) / (way - 1)
    values = torch.stack((skill, 1 + fit / math.log(way), 5 * (own - other)), -1)
    counts = (labels * (number > 1)).sum(-1, keepdim=True)  # [T, S, 1], 1 for points that are counted
    total = counts.sum(1)
    share = total / labels.sum((1, 2)).clamp(min=1).unsqueeze(-1)
    return torch.cat(((values * counts).sum(1) / total.clamp(min=1), share), -1)
