"""LLAMA: MAML with a Laplace correction, as published.

Grant et al., "Recasting Gradient-Based Meta-Learning as Hierarchical Bayes", ICLR 2018 (arXiv 1801.08930).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.guides.maml import Guide as Maml
from pyro_metabayes.inference.laplace import ggn_root, log_det_precision


class Guide(Maml):
    """q(w | support) = delta(theta^K) as in maml, and in training the loss (subroutine ML-LAPLACE)

        -log p(y_query | theta^K) + weight 1/2 log det H,  H = precision I + GGN of -log p(y_query | theta^K).

    weight is 1e-6 as published: a Laplace approximation of the evidence in name only; H is that of the query set,
    and log p(theta^K | theta^0) is dropped. Where the paper has K-FAC, which over-counts the rank of few points, the
    determinant is exact, by the lemma, in matrices of the size of the points. For ELBO or SVI the correction is the
    log density of q at its own point. `guide=laplace` is the posterior that this one is the mean of.
    """

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_features: int,
        num_steps: int = 1,
        step_size: float = 0.01,
        learn_step_size: bool = False,
        first_order: bool = False,
        initialisation: str = "global",
        weight: float = 1e-6,
        precision: float = 1.0,
    ) -> None:
        descent = (num_steps, step_size, learn_step_size, first_order, initialisation)
        super().__init__(model, num_classes, num_features, *descent)
        if weight < 0 or precision <= 0:
            raise UsageError(f"expected guide.weight >= 0 and precision > 0, got {weight} and {precision}")
        self.weight, self.precision = weight, precision

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        self.check(episodes)
        phi = self.adapted(episodes)
        root = ggn_root(self.model, phi, episodes.query_x, episodes.query_mask)
        half_log_det = 0.5 * log_det_precision(root, torch.as_tensor(self.precision).to(root))
        return Delta(phi, self.weight * half_log_det, event_dim=len(self.model.event_shape(episodes)))
