"""TIM and alpha-TIM: transductive information maximisation, by steps of Adam on the class centroids.

Boudiaf et al., "Transductive Information Maximization for Few-Shot Learning", NeurIPS 2020 (arXiv 2008.11297);
Veilleux et al., "Realistic Evaluation of Transductive Few-Shot Learning", NeurIPS 2021 (arXiv 2204.11181).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.nn.functional import one_hot

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.inference.descent import adam
from pyro_metabayes.transductive.assignments import masked_mean
from pyro_metabayes.transductive.distances import distance_logits, distance_pullback


class Guide(pyro_metabayes.Guide):
    """Point estimate at the class centroids m after K steps of Adam, which start at the class means.

    q(w | support, x_query) = delta(m^K). The steps minimise, with p_i = softmax_c(-tau/2 |x_i - m_c|^2),

        support_weight CE(support) - marginal_weight H(p_bar) + conditional_weight (1/Q) sum_i H(p_i).

    This is the cross-entropy minus the weighted mutual information of queries and labels (TIM, eq. 1 and 3). CE is the
    mean cross-entropy over the support set. p_bar is the mean of p_i over the Q queries. H is Tsallis' entropy
    (alpha-TIM, section 4), or Shannon's entropy for alpha = 1:

        H_alpha(p) = (1 - sum_c p_c^alpha) / (alpha - 1).

    Only the scale of the head, an inverse temperature, is learned. With a scale of tau / 2 the predictions are p_i at
    m^K, as published.

    Args:
        num_steps: number of steps K of Adam.
        step_size: step size of Adam.
        temperature: factor tau of the squared distances.
        alpha: order alpha of both entropies; 1 for TIM.
        support_weight: weight of the cross-entropy on the support set.
        marginal_weight: weight of H(p_bar). This entropy is largest for equal class shares.
        conditional_weight: weight of the mean of H(p_i).

    Raises:
        UsageError: a setting is out of range, or the head is not linear.
    """

    transductive = True

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_steps: int = 1000,
        step_size: float = 1e-4,
        temperature: float = 15.0,
        alpha: float = 1.0,
        support_weight: float = 1.0,
        marginal_weight: float = 10.0,
        conditional_weight: float = 1.0,
    ) -> None:
        super().__init__(model)
        if num_steps < 1 or min(step_size, temperature, alpha) <= 0:
            got = f"{num_steps=}, {step_size=}, {temperature=} and {alpha=}"
            raise UsageError(f"expected guide.num_steps >= 1, step_size > 0, temperature > 0, alpha > 0, got {got}")
        linear_head(model, "guide=tim")
        self.num_steps, self.step_size, self.temperature, self.alpha = num_steps, step_size, temperature, alpha
        self.weights = support_weight, marginal_weight, conditional_weight

    def posterior(self, observed: Observed) -> TorchDistribution:
        labels = one_hot(observed.support_y, observed.num_classes)

        def gradient(means: Tensor) -> Tensor:
            of_support = self._of_support(means, observed, labels)
            return self.temperature * (of_support + self._of_queries(means, observed))

        means = adam(class_means(observed), gradient, self.step_size, self.num_steps)
        rows = linear_head(self.model, "guide=tim").rows(2 * means, -means.square().sum(-1))
        return Delta(rows, event_dim=2)

    def _of_support(self, means: Tensor, observed: Observed, labels: Tensor) -> Tensor:
        """Return the derivative of (weighted cross-entropy) / tau in the centroids, [tasks, classes, features].

        Args:
            means: the centroids [tasks, classes, features].
            observed: the tasks.
            labels: one-hot labels of the support points [tasks, support points, classes].
        """
        p = (self.temperature * distance_logits(means, observed.support_x)).softmax(-1)
        gradient = self.weights[0] * (p - labels) * _mean_weights(observed.support_mask)
        return distance_pullback(means, observed.support_x, gradient)

    def _of_queries(self, means: Tensor, observed: Observed) -> Tensor:
        """Return the derivative of (weighted entropies) / tau in the centroids, [tasks, classes, features]."""
        p = (self.temperature * distance_logits(means, observed.query_x)).softmax(-1)
        marginal = masked_mean(p, observed.query_mask)
        of_p = self.weights[2] * self._slope(p) - self.weights[1] * self._slope(marginal)
        gradient = p * (of_p - (p * of_p).sum(-1, keepdim=True)) * _mean_weights(observed.query_mask)
        return distance_pullback(means, observed.query_x, gradient)

    def _slope(self, p: Tensor) -> Tensor:
        """Return the derivative of the entropy H_alpha(p) with respect to each probability p_c, up to a constant."""
        if self.alpha == 1:
            return -p.clamp(min=torch.finfo(p.dtype).tiny).log()
        return -self.alpha / (self.alpha - 1) * p.pow(self.alpha - 1)


def _mean_weights(mask: Tensor) -> Tensor:
    """Return weights of a mean over the unmasked points, [tasks, points, 1], from a mask [tasks, points]."""
    return (mask / mask.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
