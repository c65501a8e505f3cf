"""SIB with the true gradient instead of the synthetic gradient: an oracle, which uses the query labels.

Hu et al., "Empirical Bayes Meta-Learning with Synthetic Gradients", NeurIPS 2019 MetaLearn workshop, eq. 8.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.inference.descent import descend, hold_steps, query_loss_gradient
from pyro_metabayes.inference.family import around, kl_gradient, scale_of_family
from pyro_metabayes.inference.initialisation import initialisation_of_rows
from pyro_metabayes.inference.synthetic_gradient import network_of, synthetic_gradient
from pyro_metabayes.transductive.balance import balanced, check_balance


class Guide(pyro_metabayes.Guide):
    """Posterior of guide=sib with the true gradient of the query loss in place of the synthetic gradient.

    The training posterior is N(theta^K, diag(sigma^2)). Each step over the query points (x_i, y_i) is

        theta^{k+1} = theta^k - eta { sum_i d -log p(y_i | x_i, theta^k) / d theta + inner_kl d KL / d theta }.

    theta^0, sigma and the KL are those of `sib`. Predictions use the method `posterior`, i.e. the posterior of `sib`,
    which uses no query label. This guide can load the weights of a trained `sib`. The arguments are those of `sib`,
    without inner_samples.
    """

    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        inner_kl: float = 0.0,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
        balance: str = "unknown",
    ) -> None:
        super().__init__(model)
        check_balance(balance, model)
        self.inner_kl, self.balance, self.transductive = inner_kl, balance, num_steps > 0 or balance == "known"
        self.xi = network_of(synthetic_gradient, model, num_classes)
        self.start = initialisation_of_rows(initialisation, model, num_classes, num_weights)
        self.scale = scale_of_family(posterior, num_weights, scale)
        self.num_classes = num_classes if self.xi.fixed_classes or self.start.fixed_classes else None
        hold_steps(self, num_steps, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self._descended(observed, lambda theta: synthetic_gradient(self.model, self.xi, theta, observed))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self._descended(episodes.observed(), lambda theta: query_loss_gradient(self.model, theta, episodes))

    def _descended(self, observed: Observed, slope: Callable[[Tensor], Tensor]) -> TorchDistribution:
        self.check(observed)
        start = self.start(self.model, observed)
        scale = None if self.scale is None else self.scale(start)

        def gradient(theta: Tensor) -> Tensor:
            of_kl = self.inner_kl * kl_gradient(theta, scale, self.model.prior(observed)) if self.inner_kl else 0.0
            return slope(theta) + of_kl

        theta = descend(start, gradient, self.log_step_size.exp(), self.num_steps)
        return around(balanced(self.balance, self.model, theta, observed), scale)
