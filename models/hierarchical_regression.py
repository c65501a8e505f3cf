"""Linear regression in groups: effects that vary by group and effects that all groups share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_metabayes.errors import check_choice
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.models.linear_regression import Model as LinearRegression
from pyro_metabayes.prior import Prior

STARTS = ("closed_form", "given")
LEAST_VARIANCE = 1e-4  # lower bound on the variance of an effect, in noise variances: a variance of 0 has no inverse


class Model(LinearRegression):
    """p(y_i | x_i, w) = N(w z_i + beta v_i, noise^2 I), x_i = (z_i, v_i): a linear mixed model.

    w [Y, R] are the effects of a group, with a learned prior: partial pooling. beta [Y, D - R] and noise are learned
    too. Training maximises the marginal likelihood if the ELBO is tight. The model is conjugate to a Gaussian prior.

    Args:
        prior: prior over the effects of a group.
        num_targets: Y.
        num_features: D.
        num_weights: R, the number of leading features z_i whose effects vary by group.
        noise: standard deviation of the label noise; the initial value if it is learned.
        learn_noise: whether noise is learned.
        observe: the points whose labels `forward` conditions on: "query", "support" or "all".
        start: initial values of prior, beta and noise for groups of points. "closed_form": the maximum-likelihood
            estimates. "given": the settings of the prior, beta = 0 and `noise`.
    """

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
    ) -> None:
        super().__init__(prior, num_targets, num_weights, noise, observe)
        check_choice("model.start", start, STARTS)
        self.start = start
        self.beta = nn.Parameter(torch.zeros(num_targets, num_features - num_weights))
        self.log_noise = nn.Parameter(torch.tensor(noise).log(), requires_grad=learn_noise)

    @property
    def noise(self) -> Tensor:
        return self.log_noise.exp()

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        """Set prior, beta and noise to their maximum-likelihood estimates, before training."""
        num_own, noise = self._shape[-1], estimates.noise
        least = LEAST_VARIANCE * noise**2 * torch.eye(num_own, dtype=noise.dtype)
        self.prior_over_weights.start_at_moments(estimates.coefficients[:num_own], estimates.covariance + least)
        self.beta.data.copy_(estimates.coefficients[num_own:])
        if self.log_noise.requires_grad:
            self.log_noise.data.copy_(noise.log())

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Means [..., T, N, Y]."""
        own, shared = self._parts(x)
        return super().outputs(w, own) + shared

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The means and their pullback, pullback(g)_k = sum_i g_ik z_i."""
        return self.outputs(w, x), lambda cotangent: cotangent.mT @ self._parts(x)[0]

    def own_part(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs z and labels y - beta v of the regression on w alone."""
        own, shared = self._parts(x)
        return own, y - shared

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., N, R] of inputs x [..., N, D], and the contribution beta v of the other features [..., N, Y]."""
        num_own = self._shape[-1]
        return x[..., :num_own], x[..., num_own:] @ self.beta.mT
