"""SimpleShot: classification by the nearest class mean of centred features of unit length.

Wang, Chao, Weinberger and van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
Learning", 2019 (arXiv 1911.04623).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.nn.functional import normalize

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.inference.capabilities import linear_head


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier by the nearest mean of centred and normalised features (CL2N).

    q(w | support) = delta(w). Features are centred and scaled to unit length: z = (x - mu) / |x - mu|. mu is the mean
    feature of training tasks. m_c is the mean of z over class c of the support set. The weights w_c = (v_c, b_c) are

        v_c = 2 m_c,    b_c = -2 m_c . mu - r |m_c|^2,    r = mean of |x_i - mu| over the support set.

    They give the logits

        v_c . x + b_c = |x - mu| (1 - |z - m_c|^2) + (|x - mu| - r) |m_c|^2.

    The first term decides by the nearest mean. The last term is an approximation error: a linear classifier cannot use
    |x - mu| of each query, so r replaces it. With one shot all |m_c| = 1, and the last term does not affect the
    decision. A run sets mu by `centre_at` before training. Until then mu is 0.

    Raises:
        UsageError: the head is not linear.
    """

    centre: Tensor

    def __init__(self, model: pyro_metabayes.Model, num_features: int) -> None:
        super().__init__(model)
        linear_head(model, "guide=simple_shot")
        self.register_buffer("centre", torch.zeros(num_features))

    def centre_at(self, mean: Tensor) -> None:
        """Set the mean feature mu [features]."""
        self.centre.copy_(mean)

    def posterior(self, observed: Observed) -> TorchDistribution:
        centred, mask = observed.support_x - self.centre, observed.support_mask
        means = class_means(replace(observed, support_x=normalize(centred, dim=-1)))
        norms = torch.linalg.vector_norm(centred, dim=-1) * mask
        norm = norms.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)  # r [tasks, 1]
        offsets = -2 * means @ self.centre - norm * means.square().sum(-1)
        return Delta(linear_head(self.model, "guide=simple_shot").rows(2 * means, offsets), event_dim=2)
