"""Linear mixed model: linear regression in groups, with effects that vary by group and effects that groups share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.exact.conjugate import output_variance_of_rows
from pyro_metabayes.exact.mixed_effects import LEAST_VARIANCE, MixedEffects
from pyro_metabayes.models.linear_regression import Model as LinearRegression
from pyro_metabayes.prior import Prior

STARTS = ("closed_form", "given")


class Model(LinearRegression):
    """Linear mixed model: linear regression with effects that vary by group and effects that all groups share.

        p(y_i | x_i, w) = N(w z_i + beta v_i, noise^2 I)

    The features are x_i = (z_i, v_i). w [Y, R] are the effects of a group, with a learned prior (partial pooling). The
    effects beta [Y, D - R] and the noise are learned, and the same in all groups. Training maximises the marginal
    likelihood if the posterior of the guide is exact. With a Gaussian prior, posterior and evidence have closed forms.

    With `row_weights`, the last feature r_i is the square root of the weight of point i. As in lme4, the likelihood is
    then

        p(y_i | x_i, w) = N(w z_i + beta v_i, noise^2 / r_i^2 I).

    Args:
        prior: prior over the effects of a group.
        num_targets: Y, the number of values in one label.
        num_features: D, the number of features, plus 1 with `row_weights`.
        num_weights: R, the number of leading features z_i whose effects vary by group. With nested groups, the last of
            these features are the indicators of inner groups.
        noise: standard deviation of the label noise; the initial value if it is learned.
        learn_noise: whether noise is learned.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).
        start: initial values of prior, beta and noise for data in groups.
            "closed_form": the maximum-likelihood estimates.
            "given": the settings of the prior, beta = 0 and `noise`.
        row_weights: 1 if data points have weights, else 0.

    Raises:
        UsageError: the labels are classes, noise is not positive, or `start` has another value.
    """

    canonical = True

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        num_weights: int,
        noise: float = 1.0,
        learn_noise: bool = True,
        observe: str = "query",
        start: str = "closed_form",
        row_weights: FromSource = 0,
    ) -> None:
        super().__init__(prior, num_targets, num_weights, noise, observe)
        check_choice("model.start", start, STARTS)
        self.start, self.weighted = start, row_weights > 0
        self.beta = nn.Parameter(torch.zeros(num_targets, num_features - num_weights - row_weights))
        self.log_noise = nn.Parameter(torch.tensor(noise).log(), requires_grad=learn_noise)

    @property
    def noise(self) -> Tensor:
        return self.log_noise.exp()

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        """Set prior, beta and a learned noise to maximum-likelihood estimates, before training."""
        num_random, noise = self._shape[-1], estimates.noise
        least = LEAST_VARIANCE * noise**2 * torch.eye(num_random, dtype=noise.dtype)
        self.prior_over_weights.start_at_moments(estimates.coefficients[:num_random], estimates.covariance + least)
        self.beta.data.copy_(estimates.coefficients[num_random:])
        if self.log_noise.requires_grad:
            self.log_noise.data.copy_(noise.log())

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the means w z_i + beta v_i of N labels of Y values in T groups [..., T, N, Y]."""
        own, shared = self._parts(x)
        return super().outputs(w, own) + shared

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Compute the means and their vector-Jacobian product for a cotangent g, pullback(g)_k = sum_i g_ik z_i."""
        return self.outputs(w, x), lambda cotangent: cotangent.mT @ self._parts(x)[0]

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        if not self.weighted:
            return super().likelihood(w, x, observed)
        return Normal(self.outputs(w, x), self.noise / self.root_weight(x)).to_event(1)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        if self.weighted:
            raise UsageError(
                "expected a guide that supports data.weights, got a guide that would ignore the weights; set "
                "guide=partial_pooling, guide=exact or guide=savi"
            )
        return super().likelihood_of(outputs)

    def predictive(self, q: TorchDistribution, observed: Observed) -> TorchDistribution:
        if not self.weighted:
            return super().predictive(q, observed)
        x = observed.query_x
        variance = output_variance_of_rows(q, self._parts(x)[0]) + (self.noise / self.root_weight(x)).square()
        return Normal(self.outputs(q.mean, x), variance.sqrt()).to_event(1)

    def log_predictive(self, q: TorchDistribution, episodes: Episodes) -> Tensor:
        log_density = super().log_predictive(q, episodes)
        if not self.weighted:
            return log_density
        root = self.root_weight(episodes.query_x).squeeze(-1).masked_fill(~episodes.query_mask, 1.0)
        return log_density + self._shape[0] * root.log().sum(-1)  # the log density of y, not of r y

    def own_part(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs r z and labels r (y - beta v) of an equivalent linear regression whose only weights are w.

        The features of a point are x = (z, v). beta v is the contribution of the shared effects. r is the square root
        of the weight of the data point, or 1 if data points have no weights.
        """
        own, shared = self._parts(x)
        if not self.weighted:
            return own, y - shared
        root = self.root_weight(x)
        return root * own, root * (y - shared)

    def root_weight(self, x: Tensor) -> Tensor:
        """Return r, the square root of the weight of each of N data points [..., N, 1].

        The result is 1 instead of 0, as for masked points, so that it can be a divisor.
        """
        root = x[..., -1:]
        return torch.where(root > 0, root, 1.0)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the features x_i = (z_i, v_i). Return z, whose effects vary by group, and beta v, the shared part."""
        num_random, num_shared = self._shape[-1], self.beta.shape[-1]
        return x[..., :num_random], x[..., num_random : num_random + num_shared] @ self.beta.mT
