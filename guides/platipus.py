"""PLATIPUS: the initialisation is inferred from the query set in training, and from the support set at test time.

Finn, Xu and Levine, "Probabilistic Model-Agnostic Meta-Learning", NeurIPS 2018 (arXiv 1806.02817).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError


@runtime_checkable
class AdaptsInTheLikelihood(Protocol):
    """Model whose likelihood adapts the latent weights to the support set, such as model=platipus."""

    def centre(self, observed: Observed) -> TorchDistribution: ...

    def moved(self, w: Tensor, log_step_size: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor: ...


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior over the initial weights theta. Its mean is the prior mean mu after one step on the query set.

    In training, with the loss L of the n query points,

        q(theta | query) = N(mu - (gamma_q / n) grad L(mu), diag(v^2)),    L(mu) = -log p(y_query | x_query, mu).

    Predictions use the prior p(theta | support) of model=platipus. The likelihood of this model takes model.num_steps
    gradient steps on the support set. The ELBO bounds log p(y_query | support). For classes theta holds the weights of
    the head on frozen features.

    Args:
        step_size: step size gamma_q before training, for the mean cross-entropy. gamma_q is learned. In a regression
            gamma_q is multiplied by 2 noise^2, for the mean squared error.
        scale: standard deviation v of each weight before training. v is learned.

    Raises:
        UsageError: a setting is not positive, or the model does not adapt in the likelihood.
    """

    requires = (AdaptsInTheLikelihood,)

    def __init__(
        self, model: pyro_metabayes.Model, num_weights: int, step_size: float = 0.01, scale: float = 0.02
    ) -> None:
        super().__init__(model)
        if step_size <= 0 or scale <= 0:
            raise UsageError(f"expected guide.step_size > 0 and scale > 0, got {step_size=} and {scale=}")
        self.log_step_size = nn.Parameter(torch.tensor(step_size).log())
        self.log_scale = nn.Parameter(torch.full((num_weights,), scale).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        model = self.require(AdaptsInTheLikelihood)
        mu = model.centre(episodes).mean
        loc = model.moved(mu, self.log_step_size, episodes.query_x, episodes.query_y, episodes.query_mask)
        return Normal(loc, self.log_scale.exp()).to_event(loc.dim() - 1)
