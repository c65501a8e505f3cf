"""PADDLE: class centroids with a penalty on the number of classes among the queries.

Martin et al., "Towards Practical Few-Shot Query Sets: Transductive Minimum Description Length Inference", NeurIPS 2022
(arXiv 2210.14545).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.transductive.assignments import masked_mean, soft_class_means
from pyro_metabayes.transductive.distances import distance_logits

SCALINGS = ("none", "range")
LEAST = 1e-6  # added to a class share to make its logarithm finite


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier by class centroids m_c, with a penalty on the entropy of the class shares.

    q(w | support, x_query) = delta(w). w represents m and h after K steps of Algorithm 1,

        u_i = softmax_c(-tau/2 |z_i - m_c|^2 + class_weight h_c),    h_c = log((1/Q) sum_i u_ic),
        m_c = (sum_{support of c} z_i + sum_i u_ic z_i) / (n_c + sum_i u_ic).

    z_i are the features of the Q queries. n_c is the number of support points of class c. m starts at the class means,
    and h starts at 0.

    Algorithm 1 minimises a sum of three terms: tau/2 times the squared distances weighted by u_ic, class_weight Q times
    the entropy of the class shares, and the barrier sum_ic u_ic log u_ic. With a head of scale s, predictions are
    proportional to u_ic^s, with u_ic from m and h after K steps. Only the scale of the head is learned.

    Args:
        num_steps: number of steps K.
        class_weight: weight of the entropy of the class shares, per query (lambda / Q in the paper); 1 as published.
        temperature: factor tau of the squared distances.
        scaling: the features z.
            `none`: the features of the backbone.
            `range`: each feature of the backbone, divided by the range of this feature over the queries of the task,
                as in the released code (with tau = 1). Features without information then have the same weight as other
                features.

    Raises:
        UsageError: a setting is out of range, or the head is not linear.
    """

    transductive = True

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_steps: int = 30,
        class_weight: float = 1.0,
        temperature: float = 15.0,
        scaling: str = "none",
    ) -> None:
        super().__init__(model)
        check_choice("guide.scaling", scaling, SCALINGS)
        if num_steps < 1 or class_weight < 0 or temperature <= 0:
            got = f"{num_steps=}, {class_weight=} and {temperature=}"
            raise UsageError(f"expected guide.num_steps >= 1, class_weight >= 0 and temperature > 0, got {got}")
        linear_head(model, "guide=paddle")
        self.num_steps, self.class_weight = num_steps, class_weight
        self.temperature, self.scaling = temperature, scaling

    def posterior(self, observed: Observed) -> TorchDistribution:
        metric = self._metric(observed)
        means, soft_means = class_means(observed), soft_class_means(observed)
        scale = metric.sqrt()
        scaled_x = scale * observed.query_x
        term = means.new_zeros(observed.num_tasks, 1, observed.num_classes)
        for _ in range(self.num_steps):
            logits = distance_logits(scale * means, scaled_x) + term  # -1/2 |z_i - m_c|^2 of scaled features
            assignments = logits.softmax(-1)
            term = self.class_weight * (masked_mean(assignments, observed.query_mask) + LEAST).log()
            means = soft_means(assignments)
        directions = metric * means
        offsets = term.squeeze(-2) - 0.5 * (directions * means).sum(-1)
        return Delta(linear_head(self.model, "guide=paddle").rows(directions, offsets), event_dim=2)

    def _metric(self, observed: Observed) -> Tensor:
        """Return the weight of each feature in the squared distance, tau / range^2, [tasks, 1, features]."""
        extent = range_of_queries(observed) if self.scaling == "range" else torch.ones_like(observed.query_x[:, :1])
        return self.temperature / extent.square()


def range_of_queries(observed: Observed) -> Tensor:
    """Return the range (largest minus smallest value) of each feature over the queries, [tasks, 1, features].

    A range of 0 is replaced by 1.
    """
    off = ~observed.query_mask.unsqueeze(-1)
    largest = observed.query_x.masked_fill(off, -torch.inf).amax(1, keepdim=True)
    extent = largest - observed.query_x.masked_fill(off, torch.inf).amin(1, keepdim=True)
    return torch.where(extent > 0, extent, 1.0)
