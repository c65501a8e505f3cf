"""Posterior of a scale per task, by quadrature, and of the task weights given this scale, in closed form."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError


@runtime_checkable
class HasTaskScale(Protocol):
    """Model with a latent scale tau per task. Given tau, the prior over the task weights is conjugate."""

    def prior_of_scale(self, observed: Observed) -> TorchDistribution:
        """Return the prior p(log tau), a normal distribution with batch shape [tasks]."""

    def log_evidence_of_scale(self, log_tau: Tensor, observed: Observed) -> Tensor:
        """Return the log evidence log p(support_y | tau) [..., tasks], in nats, for log_tau [..., tasks]."""

    def posterior_given_scale(self, log_tau: Tensor, observed: Observed) -> TorchDistribution:
        """Return p(w | tau, support) for log_tau [..., tasks], with batch shape [..., tasks]. An event is one w."""


class Guide(pyro_metabayes.Guide):
    """Posterior over the scale tau and the weights w of a task, Gaussian in log tau.

        q(log tau, w) = N(log tau; mu, sigma^2) p(w | tau, labels)

    mu and sigma^2 are the mean and the variance of log tau under p(log tau | labels). Both are computed by
    Gauss-Hermite quadrature with respect to the prior of log tau (Golub and Welsch 1969): the weight of each node is
    multiplied by p(labels | tau) at the node. Apart from the quadrature, only the normal form of q(log tau) is an
    approximation. Predictions use the labels of the support set. Training uses the labels that the setting
    model.observe selects: "query", "support" or "all".

    Args:
        num_nodes: number of quadrature nodes.

    Raises:
        UsageError: num_nodes < 2, or the model has no scale per task.
    """

    requires = (HasTaskScale,)
    nodes: Tensor
    log_weights: Tensor

    def __init__(self, model: pyro_metabayes.Model, num_nodes: int = 15) -> None:
        super().__init__(model)
        if num_nodes < 2:
            raise UsageError(f"expected guide.num_nodes >= 2, got {num_nodes}")
        nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
        dtype = torch.get_default_dtype()
        self.register_buffer("nodes", torch.as_tensor(nodes, dtype=dtype), persistent=False)
        self.register_buffer("log_weights", torch.as_tensor(weights, dtype=dtype).log(), persistent=False)

    def posterior(self, observed: Observed) -> TorchDistribution:
        model = self.require(HasTaskScale)
        return Joint(
            {
                "log_tau": self._posterior_of_scale(model, observed),
                "w": lambda z: model.posterior_given_scale(z["log_tau"], observed),
            }
        )

    def _posterior_of_scale(self, model: HasTaskScale, observed: Observed) -> TorchDistribution:
        """Return q(log tau) = N(mu, sigma^2), with batch shape [tasks]."""
        prior = model.prior_of_scale(observed)
        log_tau = prior.mean + prior.stddev * self.nodes.unsqueeze(-1)  # [nodes, tasks]
        evidence = model.log_evidence_of_scale(log_tau, observed)
        share = (self.log_weights.unsqueeze(-1) + evidence).softmax(0)
        loc = (share * log_tau).sum(0)
        return Normal(loc, (share * (log_tau - loc).square()).sum(0).sqrt())

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.as_support(self.model.observe))
