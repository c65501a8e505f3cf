"""Estimation of the mean of a Gaussian, the smallest model in which the collapse of a prior can be studied."""

from __future__ import annotations

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.models.linear_regression import Model as LinearRegression
from pyro_metabayes.prior import Prior


class Model(LinearRegression):
    """Gaussian with unknown mean w, in each of Y dimensions.

        w ~ N(m, s^2),    y_i | w ~ N(w, noise^2)

    The latent w [Y, 1] holds one mean per dimension. The posterior given n labels with the mean ybar is

        p(w | y) = N((m / s^2 + n ybar / noise^2) v, v),    1 / v = 1 / s^2 + n / noise^2.

    This is linear regression on one feature that is always 1, as in data=gaussian_mean.

    Args:
        prior: a Gaussian prior N(m, s^2).
        num_targets: Y, the number of values in one label.
        num_features: number of features; must be 1.
        noise: standard deviation of the label noise, fixed.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the data has more than one feature, or a setting is out of range.
    """

    def __init__(
        self, prior: Prior, num_targets: int, num_features: int, noise: float = 1.0, observe: str = "query"
    ) -> None:
        super().__init__(prior, num_targets, num_features, noise, observe)
        if num_features != 1:
            raise UsageError(
                f"expected data.num_features=1 for model=gaussian_mean, got {num_features}; set data.num_features=1, "
                "or data=linear_regression model=linear_regression"
            )

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the means of N labels of Y values in T tasks [..., T, N, Y]: w for every input x."""
        return w.mT.expand(*w.shape[:-2], x.shape[-2], w.shape[-2])

    def own_part(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs 1 and labels y of the equivalent regression on a constant."""
        return torch.ones_like(x), y

    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """Compute the posterior p(w | support) of T tasks, a diagonal Gaussian.

        The batch shape is [T]. The event shape is [Y, 1] for labels of Y values. Tasks from `episodes.pooled()` give
        p(w | support, query), since all labelled points are then in the support set.
        """
        prior = self._unconditional(observed)
        before = precision_of(prior).squeeze(-1)  # [T, Y, 1]
        mask = observed.support_mask.unsqueeze(-1).to(observed.support_y.dtype)
        counts, sums = mask.sum(-2), (observed.support_y * mask).sum(-2)  # [T, 1], [T, Y]
        precision = before + (counts / self.noise**2).unsqueeze(-1)
        loc = (before * prior.mean + sums.unsqueeze(-1) / self.noise**2) / precision
        return Normal(loc, precision.rsqrt()).to_event(2)

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """Compute log p(y_query | support) of T tasks [T] in nats.

        In each dimension this is a Gaussian density of the M query labels. Let v be the variance of p(w | support), and
        r_i the query label i minus the mean of p(w | support). The density has

            covariance      v 1 1^T + noise^2 I,
            determinant     noise^(2 M) (1 + M v / noise^2),
            quadratic form  (sum r_i^2 - v (sum r_i)^2 / (noise^2 + M v)) / noise^2.
        """
        given_support = self.exact_posterior(episodes.observed())
        loc, variance = given_support.mean.squeeze(-1), given_support.variance.squeeze(-1)  # [T, Y]
        mask = episodes.query_mask.unsqueeze(-1).to(loc.dtype)
        residual = (episodes.query_y - loc.unsqueeze(-2)) * mask
        count, noise = mask.sum(-2), torch.as_tensor(self.noise, dtype=loc.dtype)
        quadratic = residual.square().sum(-2) - variance * residual.sum(-2).square() / (noise**2 + count * variance)
        log_det = 2 * count * noise.log() + (1 + count * variance / noise**2).log()
        return -0.5 * (count * torch.log(torch.tensor(2 * torch.pi)) + log_det + quadratic / noise**2).sum(-1)
