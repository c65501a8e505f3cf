"""Linear discriminant analysis with a shared covariance that is shrunk towards a learned diagonal.

Friedman, "Regularized Discriminant Analysis", JASA 1989; Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices", JMVA 2004.
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import linear_head
from pyro_metabayes.inference.laplace import factor_of_points


class Guide(pyro_metabayes.Guide):
    """Point estimate of the linear discriminant of equally probable Gaussian classes with equal covariances.

    q(w | support) = delta(w). The weights w_c = (v_c, b_c) of class c are a direction and an offset,

        v_c = Sigma^-1 m_c,    b_c = -1/2 m_c^T Sigma^-1 m_c,
        Sigma = (1 - alpha) S + alpha diag(tau),    S = (1/n) sum_i (x_i - m_{y_i}) (x_i - m_{y_i})^T.

    m_c is the mean of class c over the n support points. With one shot S = 0. tau is the within-class variance of each
    feature. alpha and tau are learned across tasks. By the Woodbury identity, only matrices of size [n, n] are
    factorised.

    Args:
        shrinkage: weight alpha of the diagonal covariance before training, in (0, 1).
        variance: within-class variance tau of each feature before training, in units of 1 / (number of features).

    Raises:
        UsageError: a setting is out of range, or the head is not linear.
    """

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_features: int,
        shrinkage: float = 0.9,
        variance: float = 1.0,
    ) -> None:
        super().__init__(model)
        if not 0 < shrinkage < 1 or variance <= 0:
            raise UsageError(f"expected 0 < guide.shrinkage < 1 and variance > 0, got {shrinkage=} and {variance=}")
        linear_head(model, "guide=lda")
        self.log_variance = nn.Parameter(torch.full((num_features,), variance / num_features).log())
        self.shrinkage_logit = nn.Parameter(torch.tensor(shrinkage).logit())

    def posterior(self, observed: Observed) -> TorchDistribution:
        means = class_means(observed)
        directions = self._solve(observed, means)
        offsets = -0.5 * (directions * means).sum(-1)
        return Delta(linear_head(self.model, "guide=lda").rows(directions, offsets), event_dim=2)

    def _solve(self, observed: Observed, means: Tensor) -> Tensor:
        """Return Sigma^-1 m_c for class means m_c, in the shape of the means [tasks, classes, features]."""
        alpha = self.shrinkage_logit.sigmoid()
        precision = (-self.log_variance).exp() / alpha  # of the shrinkage target, [features]
        mask = observed.support_mask.unsqueeze(-1)
        own = means.gather(1, observed.support_y.unsqueeze(-1).expand(-1, -1, means.shape[-1]))
        share = (1 - alpha) / mask.sum(1, keepdim=True).clamp(min=1)
        residuals = (observed.support_x - own) * mask * (share * precision).sqrt()  # [T, S, D]
        factor = factor_of_points(residuals.mT)
        whitened = means * precision.sqrt()
        along = torch.cholesky_solve(residuals @ whitened.mT, factor)
        return (whitened - along.mT @ residuals) * precision.sqrt()
