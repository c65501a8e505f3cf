"""UNEM: unrolled generalised EM with learned hyper-parameters in every step.

Zhou et al., "UNEM: UNrolled Generalized EM for Transductive Few-Shot Learning", CVPR 2025 (arXiv 2412.16739).
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.transductive.assignments import masked_mean, soft_class_means
from pyro_metabayes.transductive.distances import distance_logits

LEAST = 1e-6  # added to a class share to make its logarithm finite


class Guide(pyro_metabayes.Guide):
    """Point estimate of a linear classifier after K layers, each a step of generalised EM with learned parameters.

    q(w | support, x_query) = delta(w). Layer k computes, for class c with n_c support points and for Q queries x_i,

        u_i = softmax_c((-tau/2 |x_i - m_c|^2 + lambda_k h_c) / T_k),    h_c = log((1/Q) sum_i u_ic),
        m_c = (sum_{support of c} x_i + sum_i u_ic x_i) / (n_c + sum_i u_ic).

    m starts at the class means, and h starts at 0. The last layer computes only u. These are the steps of the paper's
    Gaussian model. The learned quantities are

        lambda_k = softplus of a parameter           weight of class balance in layer k > 1,
        T_k      = 1 + softplus of a parameter       temperature of layer k,
        tau      = (softplus of a parameter)^2       factor of the squared distances.

    The loss on the query labels is differentiated through all layers. With a head of scale s, predictions are
    proportional to u_ic^s of the last layer.

    Args:
        num_layers: number of layers K, at least 2.
        temperature: factor tau of the squared distances before training.

    Raises:
        UsageError: a setting is out of range, or the head is not linear.
    """

    transductive = True

    def __init__(self, model: pyro_metabayes.Model, num_layers: int = 10, temperature: float = 15.0) -> None:
        super().__init__(model)
        if num_layers < 2 or temperature <= 0:
            raise UsageError(f"expected guide.num_layers >= 2, temperature > 0, got {num_layers=}, {temperature=}")
        linear_head(model, "guide=unem")
        scale = math.sqrt(temperature)
        self.feature_scale = nn.Parameter(torch.tensor(scale + math.log(-math.expm1(-scale))))  # inverse of softplus
        self.balance = nn.Parameter(torch.ones(num_layers - 1))  # h is 0 in the first layer
        self.entropy = nn.Parameter(torch.ones(num_layers))

    def posterior(self, observed: Observed) -> TorchDistribution:
        tau, sharpness = softplus(self.feature_scale).square(), 1 / (1 + softplus(self.entropy))
        means, soft_means = class_means(observed), soft_class_means(observed)
        term = means.new_zeros(observed.num_tasks, 1, observed.num_classes)
        for k, balance in enumerate(softplus(self.balance)):
            logits = tau * distance_logits(means, observed.query_x) + term
            assignments = (sharpness[k] * logits).softmax(-1)
            term = balance * (masked_mean(assignments, observed.query_mask) + LEAST).log()
            means = soft_means(assignments)
        return Delta(self._rows(sharpness[-1] * tau, means, sharpness[-1] * term.squeeze(-2)), event_dim=2)

    def _rows(self, scale: Tensor, means: Tensor, term: Tensor) -> Tensor:
        """Return weights that give a head of scale 1 the logits scale (m_c . x - 1/2 |m_c|^2) + term_c.

        Args:
            scale: factor of the first term, a scalar.
            means: the class means m_c [tasks, classes, features].
            term: the term of each class [tasks, classes].
        """
        offsets = term - 0.5 * scale * means.square().sum(-1)
        return linear_head(self.model, "guide=unem").rows(scale * means, offsets)
