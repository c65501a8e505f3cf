"""Amortized partial pooling: the posterior is the prior conditioned on one learned pseudo-observation per point."""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

import pyro_metabayes
from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.exact.pseudo_observations import linear_maps, posterior_of_pseudo_observations
from pyro_metabayes.handlers.parameters import held_constant
from pyro_metabayes.inference.capabilities import HasPrior
from pyro_metabayes.inference.networks import zero_at_start
from pyro_metabayes.objectives.elbo import path_derivative_loss
from pyro_metabayes.seeding import task_noise, task_subset


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior over the effects w of a group: the prior, conditioned on one pseudo-observation per point.

    The prior is N(m, A^-1). Point (x_i, y_i) is replaced by a pseudo-observation u_i = b_i . w + noise of variance 1.
    So q(w | points) is Gaussian with

        precision  A + sum_i b_i b_i^T,    mean  precision^-1 (A m + sum_i b_i u_i),
        b_i = B (x_i, y_i) + f(x_i, y_i),    u_i = c (x_i, y_i) + g(x_i, y_i).

    The affine maps B and c and the networks f and g are learned. Without points q is the prior. B and c alone can
    represent the exact posterior of a linear mixed model (`linear_maps`). Each output k of a regression has its own
    points (x_i, y_ik).

    Training adds the negative ELBO of a random subset of the points of each group, with a uniformly distributed size.
    Without subsets, groups with equal inputs would train the sums over points, but not each b_i and u_i. This ELBO term
    trains only B, c, f, g, by the path derivative. (Conjugate potentials: Johnson et al., arXiv 1603.06277.)

    Args:
        num_features: number of features of an input x, with the last feature that row_weights describes.
        num_weights: number of weights per output.
        num_targets: number of outputs per point.
        particles: number of samples for the ELBO of subsets.
        num_hidden: width of the networks f and g; 0 omits these networks.
        row_weights: 1 if the last feature of row i is the square root r_i of the row's weight, else 0. With 1, r_i
            multiplies the other features and y_i.

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
        row_weights: FromSource = 0,
    ) -> None:
        super().__init__(model)
        self._check(num_targets, num_hidden)
        self.weighted, self.particles, num_inputs = row_weights > 0, particles, num_features - row_weights + 1
        self.direction = nn.Linear(num_inputs, num_weights)
        self.value = nn.Linear(num_inputs, 1)
        self.start_at(torch.zeros(num_inputs - 1), 1.0)
        widths = (num_weights, 1) if num_hidden else ()
        self.networks = nn.ModuleList(zero_at_start(num_inputs, num_hidden, n) for n in widths)

    def _check(self, num_targets: int, num_hidden: int) -> None:
        if num_targets < 1:
            raise UsageError("expected numeric labels for guide=partial_pooling, got classes; take data=radon")
        if num_hidden < 0:
            raise UsageError(f"expected guide.num_hidden >= 0, got {num_hidden}")
        if self.require(HasPrior).prior_over_weights.conditional:
            expected = "expected a prior that does not depend on the support set for guide=partial_pooling"
            raise UsageError(f"{expected}, got a conditional prior; take prior=full_gaussian")

    @torch.no_grad()
    def start_at(self, shared: Tensor, noise: float) -> None:
        """Set B and c such that q is the exact posterior of a linear mixed model. Arguments: see `linear_maps`."""
        maps = linear_maps(len(self.direction.weight), shared, noise)
        for linear, weight in zip((self.direction, self.value), maps, strict=True):
            linear.weight.copy_(weight)
            nn.init.zeros_(linear.bias)

    def start_at_estimates(self, estimates: MixedEffects) -> None:
        shared = estimates.coefficients.clone()
        shared[: len(estimates.covariance)] = 0.0
        self.start_at(shared.to(self.value.weight), estimates.noise.item())

    def posterior(self, observed: Observed) -> TorchDistribution:
        return posterior_of_pseudo_observations(self.model.prior(observed), *self.pseudo_observations(observed))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.as_support(self.model.observe))

    def pseudo_observations(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Return b [tasks, outputs, points, weights], with 0 for masked points, and u [tasks, outputs, points, 1]."""
        y = observed.support_y.mT.unsqueeze(-1)  # [T, Y, S, 1]
        x = observed.support_x.unsqueeze(1).expand(*y.shape[:-1], -1)
        points = torch.cat((x[..., :-1], y), -1) * x[..., -1:] if self.weighted else torch.cat((x, y), -1)
        direction, value = self.direction(points), self.value(points)
        if len(self.networks):
            direction, value = direction + self.networks[0](points), value + self.networks[1](points)
        return direction * observed.support_mask[:, None, :, None], value

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return the negative ELBO of a random subset of points, in nats [tasks]. This term trains only B, c, f, g."""
        points = episodes.as_support(self.model.observe)
        shape = self.particles, points.num_tasks, *self.model.event_shape(points)
        noise = task_noise(shape, points.support_x, task_dim=1)  # before the subset, whose draws depend on padding
        subset = replace(points, support_mask=task_subset(points.support_mask))
        with held_constant(self.model):
            return {"subset_loss": path_derivative_loss(self.model, self.posterior(subset), subset, noise).mean(0)}
