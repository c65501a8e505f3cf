"""A Laplace posterior around the adapted weights: the Gaussian that LLAMA is the mean of.

After Grant et al., ICLR 2018 (arXiv 1801.08930), section 4, with the curvature of the support set where it belongs:
in the posterior.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.guides.maml import Guide as Maml
from pyro_metabayes.inference.divergences import check_gaussian
from pyro_metabayes.inference.laplace import LowRankPrecision, ggn_root


class Guide(Maml):
    """q(w | support) = N(theta^K, (Lambda + GGN)^-1), where the prior is N(theta^0, Lambda^-1), Lambda diagonal,

        theta^{k+1} = theta^k - a (1 + a Lambda)^-1 (grad_w -log p(y_support | theta^k) + Lambda (theta^k - theta^0)),

    a = eta / n: steps implicit in the prior's quadratic, where explicit ones diverge as soon as a Lambda > 2. And
    GGN = sum_i J_i^T L_i J_i is the generalised Gauss-Newton matrix of the n support points at theta^K. The
    prior is learned with the rest. In the ELBO the entropy of q is -1/2 log det(Lambda + GGN), LLAMA's correction with
    weight 1; draws and determinants take Cholesky factors of the size of the points, never of the weights.
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
    ) -> None:
        super().__init__(model, num_classes, num_features, num_steps, step_size, learn_step_size, first_order, "prior")

    def posterior(self, observed: Observed) -> TorchDistribution:
        phi = self.adapted(observed)
        root = ggn_root(self.model, phi, observed.support_x, observed.support_mask)
        return LowRankPrecision(phi, 1 / self._prior(observed).variance, root, event_dim=phi.dim() - 1)

    def slope(self, observed: Observed, start: Tensor) -> Callable[[Tensor], Tensor]:
        of_points, variance = super().slope(observed, start), self._prior(observed).variance
        return lambda w: of_points(w) + (w - start) / variance

    def rate(self, observed: Observed) -> Tensor:
        explicit = super().rate(observed)
        return explicit / (1 + explicit / self._prior(observed).variance)

    def _prior(self, observed: Observed) -> TorchDistribution:
        prior = self.model.prior(observed)
        check_gaussian(prior, "guide=laplace")
        return prior
