"""SIB as the prior, SAVI's bound: the posterior goes on from theta^K with gradients that see the query labels.

The prior's steps: Hu et al., ICLR 2020 (arXiv 2004.12696). The bound on p(y | x, support), whose prior is what
predicts: Iakovleva, Verbeek and Alahari, ICML 2020 (arXiv 2008.12037). Steps whose size is the posterior's variance:
Khan and Rue, "The Bayesian learning rule", JMLR 2023 (arXiv 2107.04562).
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from guides.sib import Guide as Sib
from guides.sib import choose
from pyro_metabayes.descent import descend, loss_gradient
from pyro_metabayes.divergences import innermost
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError


class Guide(Sib):
    """p(w | support, x_query) = N(theta^K, diag(sigma^2)) of sib predicts, and is the prior, with prior=guided. In
    training q(w | support, x_query, y_query) = N(theta_J, diag(tau^2)), J = label_steps, theta_0 = theta^K,

        theta_{j+1} = theta_j - tau^2 { sum_i d -log p(y_i | x_i, theta_j) / d theta + (theta_j - theta^K) / sigma^2 },
        1 / tau^2 = 1 / sigma^2 + h,

    h > 0 learned for each weight, from label_precision: what the labels of a task add to the precision. The KL charges
    for what the labels tell beyond the inputs, and no more: sigma -> 0 is the point mass with KL 0, so the bound at
    weight 1 can only better the point mass's. label_steps=0 is q = p with KL 0, for which sigma does go to 0.
    by_entropy: sigma is wider for classes whose queries are in doubt, times exp(b H_c), b learned from 0, H_c the mean
    entropy of the predictions with theta^K over the queries that class c attracts; for classes, not for numbers.
    What stands between: as in sib. Why: docs/cold-posterior.md.
    """

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        label_steps: int = 1,
        label_precision: float = 100.0,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = True,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        by_entropy: bool = True,
    ) -> None:
        choose("guide.posterior", posterior, ("normal", "amortized"))
        if label_steps < 0 or label_precision <= 0:
            got = f"{label_steps} and {label_precision}"
            raise UsageError(f"expected guide.label_steps >= 0 and guide.label_precision > 0, got {got}")
        of_sib = (num_steps, step_size, learn_step_size, posterior, scale, initialisation, synthetic_gradient)
        super().__init__(model, num_classes, num_weights, *of_sib)
        prior: Any = getattr(model, "prior_over_weights", None)
        if not hasattr(prior, "follow"):
            raise UsageError(
                f"expected a prior that follows the guide, got {type(prior).__name__}; take prior=guided, and a model "
                "that asks for a prior"
            )
        prior.follow(self.posterior)
        self.label_steps = label_steps
        self.sees_query_labels = label_steps > 0
        self.entropy_slope = nn.Parameter(torch.zeros(())) if by_entropy else None
        if label_steps:
            self.log_label_precision = nn.Parameter(torch.full((num_weights,), label_precision).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        q = super().posterior(observed)
        if self.entropy_slope is None:
            return q
        its: Any = innermost(q)
        widening = (self.entropy_slope * self._entropy(its.loc, observed)).clamp(-5, 5).exp()
        return Normal(its.loc, its.scale * widening).to_event(2)

    def _entropy(self, theta: Tensor, observed: Observed) -> Tensor:
        """H_c [T, C, 1]: of the predictions with weights theta, mean over the queries that class c attracts."""
        if not observed.num_classes:
            raise UsageError("expected classes for guide.by_entropy=true, got numbers; set guide.by_entropy=false")
        probs = self.model.query_outputs_and_pullback(theta, observed)[0].softmax(-1)
        entropy = -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1, keepdim=True)
        share = probs * observed.query_mask.unsqueeze(-1)
        return (share * entropy).sum(1).div(share.sum(1).clamp(min=1e-6)).unsqueeze(-1)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        prior = self.posterior(episodes.observed())
        if not self.label_steps:
            return prior
        its: Any = innermost(prior)
        of_prior = its.scale.square().reciprocal()
        precision = of_prior + self.log_label_precision.exp()

        def slope(w: Tensor) -> Tensor:
            points = episodes.query_x, episodes.query_y, episodes.query_mask
            return loss_gradient(self.model, w, *points) + (w - its.loc) * of_prior

        return Normal(descend(its.loc, slope, 1 / precision, self.label_steps), precision.rsqrt()).to_event(2)
