"""Amortized partial pooling: the posterior is the prior of the model given one pseudo-observation per point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.handlers.parameters import held_constant
from pyro_metabayes.inference.capabilities import HasPrior
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.inference.networks import zero_at_start
from pyro_metabayes.seeding import task_draws, task_noise


class Guide(pyro_metabayes.Guide):
    """q(w | points): the Gaussian prior N(m, A^-1) of the model given u_i = b_i . w + e_i, e_i ~ N(0, 1):

        precision  A + sum_i b_i b_i^T,    mean  precision^-1 (A m + sum_i b_i u_i),
        b_i = B (x_i, y_i) + f(x_i, y_i) in R^W,    u_i = c (x_i, y_i) + g(x_i, y_i).

    Without points q is the prior. Linear maps B and c can represent the exact posterior of a linear mixed model: b_i =
    z_i / noise, u_i = (y_i - beta . v_i) / noise. Each output k of a regression has its own set of points (x_i, y_ik).

    If all groups have the same inputs, the ELBO of whole groups determines only sums over points. So training adds the
    negative ELBO of a random subset of the points of each group, with a uniformly distributed size. This term trains B,
    c, f and g only, by the path derivative, which is 0 at the exact posterior. (Roeder, Wu and Duvenaud 2017, arXiv
    1703.09194; potentials conjugate to the prior: Johnson et al. 2016, arXiv 1603.06277.)

    Args:
        num_features: D.
        num_weights: W.
        num_targets: Y, the number of outputs per point.
        particles: number of samples for the ELBO of subsets.
        num_hidden: width of the networks f and g; 0 omits them.

    Raises:
        UsageError: labels are classes, the prior depends on the support set or is not Gaussian, or num_hidden < 0.
    """

    requires = (HasPrior,)

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_features: int,
        num_weights: int,
        num_targets: int,
        particles: int = 1,
        num_hidden: int = 0,
    ) -> None:
        super().__init__(model)
        self._check(num_targets, num_hidden)
        self.particles, num_inputs = particles, num_features + 1
        self.direction = nn.Linear(num_inputs, num_weights)
        self.value = nn.Linear(num_inputs, 1)
        self.start_at(torch.zeros(num_features), 1.0)
        self.networks = None
        if num_hidden:
            self.networks = nn.ModuleList(zero_at_start(num_inputs, num_hidden, n) for n in (num_weights, 1))

    def _check(self, num_targets: int, num_hidden: int) -> None:
        if num_targets < 1:
            raise UsageError(
                "expected data with numeric labels for guide=partial_pooling, got classes; take numeric "
                "data, such as data=radon"
            )
        if num_hidden < 0:
            raise UsageError(f"expected guide.num_hidden >= 0, got {num_hidden}")
        if self.require(HasPrior).prior_over_weights.conditional:
            raise UsageError(
                "expected a prior that does not depend on the support set for guide=partial_pooling, got a conditional "
                "one; take prior=full_gaussian"
            )

    @torch.no_grad()
    def start_at(self, shared: Tensor, noise: float) -> None:
        """Set B and c to the exact posterior of y_i ~ N(w . z_i + shared . x_i, noise^2), z_i the first W features.

        Args:
            shared: shared effects of the features x_i [D], 0 for the features z_i.
            noise: standard deviation of the label noise.
        """
        size = len(self.direction.weight)
        for linear in (self.direction, self.value):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.direction.weight[:, :size] = torch.eye(size) / noise
        self.value.weight[0, :-1] = -shared / noise
        self.value.weight[0, -1] = 1 / noise

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        shared = estimates.coefficients.clone()
        shared[: len(estimates.covariance)] = 0.0
        self.start_at(shared.to(self.value.weight), estimates.noise.item())

    def posterior(self, observed: Observed) -> TorchDistribution:
        prior = self.model.prior(observed)
        direction, value = self.pseudo_observations(observed)
        before = precision_of(prior)  # [T, Y, W, W]
        evidence = before @ prior.mean.unsqueeze(-1) + direction.mT @ value
        precision = before + direction.mT @ direction
        loc = torch.cholesky_solve(evidence, cholesky(precision)).squeeze(-1)
        with WithoutWaiting():
            return MultivariateNormal(loc, precision_matrix=precision).to_event(1)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.as_support(self.model.observe))

    def pseudo_observations(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """b [T, Y, S, W] and u [T, Y, S, 1] of the support points; b is 0 for masked ones."""
        y = observed.support_y.mT.unsqueeze(-1)  # [T, Y, S, 1]
        points = torch.cat((observed.support_x.unsqueeze(1).expand(*y.shape[:-1], -1), y), -1)
        direction, value = self.direction(points), self.value(points)
        if self.networks is not None:
            direction, value = direction + self.networks[0](points), value + self.networks[1](points)
        return direction * observed.support_mask[:, None, :, None], value

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Negative ELBO [T] in nats of a random subset of the points; it trains the parameters of this guide only."""
        points = episodes.as_support(self.model.observe)
        shape = self.particles, points.num_tasks, *self.model.event_shape(points)
        noise = task_noise(shape, points.support_x, task_dim=1)  # before the subset, whose draws depend on padding
        subset = replace(points, support_mask=random_subset(points.support_mask))
        with held_constant(self.model):
            q: Any = innermost(self.posterior(subset))
            w = q.loc + (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
            likelihood = self.model.likelihood(w, subset.support_x, subset)
            log_likelihood = (likelihood.log_prob(subset.support_y) * subset.support_mask).sum(-1)
            log_prior = self.model.prior(subset).log_prob(w)
        without_gradient = MultivariateNormal(q.loc.detach(), scale_tril=q.scale_tril.detach()).to_event(1)
        return {"subset_loss": (without_gradient.log_prob(w) - log_prior - log_likelihood).mean(0)}


def random_subset(mask: Tensor) -> Tensor:
    """A random subset of mask [T, S]: a task keeps each point with one probability, drawn uniformly from [0, 1].

    The draws belong to the ranks of the unmasked points, so that padding does not change the subset.
    """
    num_tasks, size = mask.shape
    uniform = task_draws(lambda sizes: torch.rand(*sizes, num_tasks, device=mask.device), (size + 1,)).mT  # [T, S + 1]
    return mask & (uniform.gather(1, mask.cumsum(1)) < uniform[:, :1])
