"""Classifier from class means and ridge regression on the support set, with learned, task-dependent scales.

Prototypes: Snell et al. 2017 (arXiv 1703.05175). Ridge regression as a base learner: Bertinetto et al. 2019 (R2-D2,
arXiv 1805.08136).
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.inference.cholesky import cholesky
from pyro_metabayes.transductive.amortized.assignment_network import zero_network
from pyro_metabayes.transductive.amortized.task_geometry import (
    LEAST_LENGTH,
    NUM_FRAME,
    frame_statistics,
    support_labels,
)

NUM_STATISTICS = 7


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier: the sum of class means and a ridge regression on the support set.

    q(w | support) = delta(w). For a query x, class c of C has the logit w_c . x with

        w_c = s m_c / |m_c| + r sum_j a_jc x_j,    a = (X X^T + lambda I)^-1 (Y - 1/C).

    m_c is the mean of class c. X [support points, features] holds the support points x_j. Y [support points, C] holds
    the one-hot labels.

    The scales s, r and lambda are learned functions of statistics of the support set. These statistics are the way, the
    shots, and the lengths and cosines of the class means. backbone=task_frame adds further statistics. No parameter
    depends on the number of features or of classes. The features must have unit length, such as those of
    backbone=task_frame.

    Raises:
        UsageError: the head is not linear.
    """

    def __init__(self, model: pyro_metabayes.Model) -> None:
        super().__init__(model)
        linear_head(model, "guide=amortized_means")
        self.scales = zero_network(NUM_STATISTICS + NUM_FRAME, 3)

    def posterior(self, observed: Observed) -> TorchDistribution:
        labels = support_labels(observed)
        counts = labels.sum(1)
        means = class_means(observed)
        length = means.norm(dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
        statistics = _statistics(means / length, length.squeeze(-1), counts)
        scales = self.scales(torch.cat((statistics, frame_statistics(observed)), -1))[..., None, None]
        ridge = _ridge(observed, labels, (scales[:, 2] - 1).exp())
        directions = 10 * scales[:, 0].exp() * means / length + 4 * softplus(scales[:, 1] - 1) * ridge
        head = linear_head(self.model, "guide=amortized_means")
        return Delta(head.rows(directions / head.scale, torch.zeros_like(counts)), event_dim=2)


def _ridge(observed: Observed, labels: Tensor, penalty: Tensor) -> Tensor:
    """Return the ridge regression of the labels on the support points, [tasks, classes, features].

    Args:
        observed: the tasks; masked support points have no effect.
        labels: one-hot labels of the support points [tasks, support points, classes].
        penalty: the ridge penalty lambda [tasks, 1, 1].
    """
    x = observed.support_x * observed.support_mask.unsqueeze(-1)
    targets = (labels - 1 / labels.shape[-1]) * observed.support_mask.unsqueeze(-1)
    kernel = x @ x.mT + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.cholesky_solve(targets, cholesky(kernel)).mT @ x


def _statistics(directions: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """Return 7 statistics of each support set [tasks, 7], each scaled to order 1.

    Args:
        directions: class means scaled to unit length [tasks, classes, features].
        lengths: lengths of the class means [tasks, classes].
        counts: number of support points of each class [tasks, classes].
    """
    way = counts.shape[-1]
    shots = counts.clamp(min=1).log()
    cosines = directions @ directions.mT
    own = torch.eye(way, dtype=torch.bool, device=cosines.device)
    nearest = cosines.masked_fill(own, -1.0).amax(-1)
    spread = cosines.masked_fill(own, 0.0).square().sum((1, 2)) / (way * max(way - 1, 1))
    values = (
        torch.full_like(spread, math.log(way / 5)),
        shots.mean(-1),
        shots.std(-1, correction=0),
        lengths.square().mean(-1),
        lengths.square().log().mean(-1) + shots.mean(-1),
        2 * nearest.mean(-1),
        5 * spread.clamp(min=1e-8).sqrt(),
    )
    return torch.stack(values, -1)
