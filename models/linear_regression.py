"""Bayesian linear regression, with closed forms of posterior and evidence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import log_evidence_of_rows, output_variance_of_rows, posterior_of_rows
from pyro_metabayes.prior import Prior


class Model(pyro_metabayes.Model):
    """Linear regression with Gaussian noise, whose latent variable is the weights w.

        p(y_i | x_i, w) = N(w x_i, noise^2 I)

    The shapes are w [Y, D], x_i [D] and y_i [Y]. A feature that is always 1 gives an intercept. With a Gaussian prior,
    the methods exact_posterior and log_evidence are exact.

    Args:
        prior: prior over w.
        num_targets: Y, the number of values in one label.
        num_features: D, the number of features.
        noise: standard deviation of the label noise, fixed.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: the labels are classes, or noise is not positive.
    """

    canonical = True
    prior_over_weights: Prior

    def __init__(
        self, prior: Prior, num_targets: int, num_features: int, noise: float = 1.0, observe: str = "query"
    ) -> None:
        super().__init__(observe)
        if num_targets < 1:
            raise UsageError(
                "expected data with numeric labels for a regression, got classes; set for example data=sinusoid"
            )
        if noise <= 0:
            raise UsageError(f"expected model.noise > 0, got {noise}")
        self.prior_over_weights, self._noise = prior, noise
        self._shape = Size((num_targets, num_features))

    @property
    def noise(self) -> Tensor | float:
        """Standard deviation of the label noise."""
        return self._noise

    def event_shape(self, observed: Observed) -> Size:
        return self._shape

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.prior_over_weights(observed, self._shape)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Normal(outputs, self.noise).to_event(1)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        """Return weights 0 [Y, D], for Y values of a label and D features."""
        return torch.zeros(self._shape)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the means w x_i of N labels of Y values in T tasks [..., T, N, Y]."""
        return (w @ x.mT).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Compute the means and their vector-Jacobian product for a cotangent g, pullback(g)_k = sum_i g_ik x_i."""
        return self.outputs(w, x), lambda cotangent: cotangent.mT @ x

    def loss_unit(self) -> Tensor | float:
        return 2 * self.noise**2

    def exact_posterior(self, observed: Observed) -> TorchDistribution:
        """Compute the posterior p(w | support) of T tasks, with batch shape [T] and event shape [Y, D].

        An event holds the weights of D features for Y outputs. Tasks from `episodes.pooled()` give p(w | support,
        query), since all labelled points are then in the support set.

        Raises:
            UsageError: the prior depends on the support set or is not Gaussian, or a subclass has another likelihood.
        """
        prior = self._unconditional(observed)
        x, y = self.own_part(observed.support_x, observed.support_y)
        return posterior_of_rows(prior, x, y, observed.support_mask, self.noise)

    def log_evidence(self, episodes: Episodes) -> Tensor:
        """Compute log p(y_query | x_query, support) of T tasks [T] in nats; the weights are integrated out."""
        return self.log_predictive(self.exact_posterior(episodes.observed()), episodes)

    def predictive(self, q: TorchDistribution, observed: Observed) -> TorchDistribution:
        """Compute the predictive distribution of each query, the integral of p(y_i | x_i, w) q(w) for a Gaussian q.

        The batch shape is [T, Q] for Q queries of T tasks. The event shape is [Y] for Y values of a label.
        """
        own = self.own_part(observed.query_x, observed.query_x.new_zeros(()))[0]
        variance = output_variance_of_rows(q, own) + self.noise**2
        return Normal(self.outputs(q.mean, observed.query_x), variance.sqrt()).to_event(1)

    def log_predictive(self, q: TorchDistribution, episodes: Episodes) -> Tensor:
        """Compute the log of the integral of prod_i p(y_i | x_i, w) q(w) over the queries i, for a Gaussian q.

        Returns:
            Tensor [T] for T tasks, in nats.
        """
        x, y = self.own_part(episodes.query_x, episodes.query_y)
        return log_evidence_of_rows(q, x, y, episodes.query_mask, self.noise)

    def own_part(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of an equivalent linear regression whose only weights are w.

        The closed forms of posterior and evidence use this regression. Models with further effects override the method.
        """
        return x, y

    def _unconditional(self, observed: Observed) -> TorchDistribution:
        """Return the prior, after a check that it depends on no label and that the likelihood is Gaussian."""
        if not self.canonical:
            raise UsageError(
                "expected the likelihood of model=linear_regression for closed forms, got a model that overrides "
                "likelihood_of; use a guide without closed forms"
            )
        if self.prior_over_weights.conditional:
            raise UsageError(
                "expected a prior that does not depend on the support set, got a conditional prior; set prior=gaussian"
            )
        return self.prior(observed)
