"""Linear regression with two latent variables per task: a scale, and weights whose prior depends on the scale."""

from __future__ import annotations

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Size, Tensor, nn

import pyro_metabayes
from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.distributions.sites import Sites
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import log_evidence_of_rows, posterior_of_rows
from pyro_metabayes.models.linear_regression import Model as LinearRegression
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """Linear regression with a latent scale tau_t and latent weights w_t per task:

        log tau_t ~ N(0, spread^2),    w_t ~ N(m, tau_t^2 diag(s)^2),    y_i ~ N(w_t x_i, noise^2 I).

    The shapes are w_t [Y, D], x_i [D] and y_i [Y]. Tasks with a large tau_t have weights far from the mean m. So the
    marginal distribution of the weights has heavier tails than a normal distribution. The latent vector [1 + Y D] of a
    task is the concatenation of log tau_t and w_t.

    Args:
        prior: Gaussian prior N(m, diag(s)^2) over w_t at tau_t = 1.
        num_targets: Y, the number of values in one label.
        num_features: D, the number of features.
        noise: standard deviation of the label noise, fixed.
        spread: standard deviation of log tau_t before training; it is learned.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the labels are classes, or noise or spread is not positive.
    """

    prior_over_weights: Prior
    sites: Sites

    def __init__(
        self,
        prior: Prior,
        num_targets: int,
        num_features: int,
        noise: float = 1.0,
        spread: float = 0.5,
        observe: str = "query",
    ) -> None:
        super().__init__(observe)
        if spread <= 0:
            raise UsageError(f"expected model.spread > 0, got {spread}")
        self.given_scale = LinearRegression(prior, num_targets, num_features, noise)
        self.prior_over_weights = prior
        self.log_spread = nn.Parameter(torch.tensor(spread).log())
        self.sites = Sites(log_tau=Size([]), w=Size([num_targets, num_features]))

    def event_shape(self, observed: Observed) -> Size:
        return self.sites.event_shape

    def prior(self, observed: Observed) -> TorchDistribution:
        weights = self.given_scale.prior(observed)
        return Joint({"log_tau": self.prior_of_scale(observed), "w": lambda z: _scaled(weights, z["log_tau"])})

    def prior_of_scale(self, observed: Observed) -> TorchDistribution:
        """Return the prior p(log tau) of the log scales of T tasks, with batch shape [T] and event shape []."""
        return Normal(0.0, self.log_spread.exp()).expand([observed.num_tasks])

    def posterior_given_scale(self, log_tau: Tensor, observed: Observed) -> TorchDistribution:
        """Return the posterior p(w | tau, support), with batch shape [..., T], for log tau [..., T] of T tasks."""
        return posterior_of_rows(self._prior_given_scale(log_tau, observed), *_points(observed), self.given_scale.noise)

    def log_evidence_of_scale(self, log_tau: Tensor, observed: Observed) -> Tensor:
        """Compute the log evidence log p(support_y | tau) [..., T] in nats, for log tau [..., T] of T tasks."""
        prior = self._prior_given_scale(log_tau, observed)
        return log_evidence_of_rows(prior, *_points(observed), self.given_scale.noise)

    def _prior_given_scale(self, log_tau: Tensor, observed: Observed) -> TorchDistribution:
        return _scaled(self.given_scale.prior(observed), log_tau)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the means [..., T, N, Y] of labels of Y values, for N inputs x in T tasks and latents w."""
        return self.given_scale.outputs(self.sites.split(w)["w"], x)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return self.given_scale.likelihood_of(outputs)

    def loss_unit(self) -> Tensor | float:
        return self.given_scale.loss_unit()

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Return the latent vector with tau = 1 and zero weights."""
        return torch.zeros(self.sites.event_shape)


def _points(observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
    return observed.support_x, observed.support_y, observed.support_mask


def _scaled(weights: TorchDistribution, log_tau: Tensor) -> TorchDistribution:
    """Return N(m, tau^2 diag(s)^2) for the distribution N(m, diag(s)^2) of the weights."""
    return Normal(weights.mean, log_tau.exp()[..., None, None] * weights.variance.sqrt()).to_event(2)
