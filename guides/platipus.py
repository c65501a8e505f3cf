"""PLATIPUS: infer the initialisation from the query set in training, from the support set at test.

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
    """The model of PLATIPUS."""

    def centre(self, observed: Observed) -> TorchDistribution: ...

    def moved(self, w: Tensor, log_step_size: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor: ...


class Guide(pyro_metabayes.Guide):
    """q(theta | query) = N(mu - (gamma_q / n) grad L(mu, query), diag(v^2)) in training, over n query points;

    predictions use the prior p(theta | support) of model=platipus, whose likelihood then descends on the support
    set. ELBO: a bound on log p(y_query | support) of that model. gamma_q, from step_size, and v, from scale, are
    learned. With frozen features it is the head's weights that adapt. The steps of descent are model.num_steps.
    """

    requires = (AdaptsInTheLikelihood,)

    def __init__(
        self, model: pyro_metabayes.Model, num_weights: int, step_size: float = 0.01, scale: float = 0.02
    ) -> None:
        super().__init__(model)
        if step_size <= 0 or scale <= 0:
            raise UsageError(f"expected guide.step_size and scale > 0, got {step_size} and {scale}")
        self.log_step_size = nn.Parameter(torch.tensor(step_size).log())
        self.log_scale = nn.Parameter(torch.full((num_weights,), scale).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        model = self.require(AdaptsInTheLikelihood)
        mu = model.centre(episodes).mean
        loc = model.moved(mu, self.log_step_size, episodes.query_x, episodes.query_y, episodes.query_mask)
        return Normal(loc, self.log_scale.exp()).to_event(loc.dim() - 1)
