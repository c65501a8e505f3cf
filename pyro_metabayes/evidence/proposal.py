"""Gaussian proposals for importance sampling of w, given the query labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, Poisson

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evidence.latent import Latent, log_standard_normal
from pyro_metabayes.evidence.precision import DENSE, precision_of
from pyro_metabayes.inference.descent import output_gradient
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.inference.laplace import ggn_root
from pyro_metabayes.model import Model
from pyro_metabayes.seeding import drawing

NEWTON_STEPS = 10  # Newton steps to the mode
AVERAGED_STEPS = 6  # further steps, with derivatives averaged over draws
PAIRS = 4  # pairs of antithetic draws over which derivatives are averaged
FACTORS = (1.0, 0.5, 0.25, 0.0625)  # lengths of a step, relative to a Newton step; the best length is taken


def log_likelihood(model: Model, w: Tensor, episodes: Episodes) -> Tensor:
    """Compute sum_i log p(y_i | x_i, w) [..., T] over the unmasked queries i, for weights w [..., T, *W]."""
    observed = episodes.observed()
    log_prob = model.likelihood(w, observed.query_x, observed).log_prob(episodes.query_y)
    return torch.where(episodes.query_mask, log_prob, 0.0).sum(-1)


@dataclass(frozen=True, eq=False)
class Target:
    """The function log f(z), whose integral ∫ f(z) dz is the evidence ∫ p(y | w) q(w) dw.

        f(z) = p(y | w(z)) q(w(z)) |det dw / dz|

    The coordinates z of w ~ q are about standard normal. For a Gaussian q, f(z) = N(z; 0, I) p(y | w(z)).

    Args:
        model: the likelihood.
        latent: the change of variables from z to w ~ q.
        episodes: T tasks with features as inputs and query labels.
    """

    model: Model
    latent: Latent
    episodes: Episodes

    def __call__(self, z: Tensor) -> Tensor:
        """Compute log f(z) [..., T] at z [..., T, P] for T tasks with P coordinates."""
        w, log_factor = self.latent.at(z)
        return log_standard_normal(z) + log_factor + log_likelihood(self.model, w, self.episodes)

    @property
    def has_curvature(self) -> bool:
        """Whether the Gauss-Newton matrix exists: w is affine in z, and the likelihood has a Fisher information."""
        if not self.latent.affine or type(self.model).likelihood is not Model.likelihood:
            return False
        w, _ = self.latent.at(self.origin)
        family = innermost(self.model.likelihood_of(self.model.outputs(w, self.episodes.query_x)))
        return isinstance(family, Categorical | Normal | Bernoulli | Poisson)

    @property
    def origin(self) -> Tensor:
        """The point z = 0 [T, P]; for a Gaussian q, w(0) is the mean of q."""
        like = self.episodes.query_x
        return like.new_zeros(self.episodes.num_tasks, self.latent.num_coordinates)

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate -log p(y | w(z)) at z [T, P] for T tasks with P coordinates.

        Returns the gradient [T, P], and V [T, P, columns], a root of the generalised Gauss-Newton matrix V V^T.
        """
        episodes = self.episodes
        w, pull = torch.func.vjp(lambda at: self.latent.at(at)[0], z)[:2]
        outputs, pullback = self.model.outputs_and_pullback(w, episodes.query_x)
        slope = pullback(output_gradient(self.model, outputs, episodes.query_y, episodes.query_mask))
        root = ggn_root(self.model, w, episodes.query_x, episodes.query_mask)
        return pull(slope)[0], torch.func.vmap(lambda column: pull(column)[0], in_dims=-1, out_dims=-1)(root)


@dataclass(frozen=True, eq=False)
class Proposal:
    """The Gaussian proposal g(z) = N(mean, R R^T) for T tasks with P coordinates, sampled as z = mean + R u.

    Attributes:
        mean: [T, P].
        root: function from u [..., T, P] to R u.
        log_det: [T], -log |det R|.
    """

    mean: Tensor
    root: Callable[[Tensor], Tensor]
    log_det: Tensor

    def at(self, u: Tensor) -> Tensor:
        """Compute the point z = mean + R u for standard normal u [..., T, P]."""
        return self.mean + self.root(u)

    def log_weight(self, target: Target, u: Tensor) -> Tensor:
        """Compute the log importance weight log f(z) - log g(z) [..., T] at z = mean + R u, for u [..., T, P]."""
        return target(self.at(u)) - log_standard_normal(u) - self.log_det


def proposal_of(target: Target) -> Proposal:
    """Compute a Gaussian proposal close to f (`Target`), the unnormalised posterior given prior q and query labels.

    Newton's method finds the mode of f. The curvature at the mode gives Laplace's approximation. For at most DENSE
    (2048) coordinates, further steps use gradient and curvature averaged over draws of the approximation. These steps
    lead to the Gaussian with the largest ELBO, a better proposal for a cosine head. (Opper and Archambeau 2009; Khan
    and Lin 2017.)

    Args:
        target: the function f of T tasks.

    Returns:
        The proposal. Without a known curvature of the likelihood, this is N(0, I) in the coordinates z.
    """
    origin = target.origin
    proposal = Proposal(origin, _identity, origin.sum(-1))
    if not target.has_curvature:
        return proposal
    for _ in range(NEWTON_STEPS):
        proposal = _improved(target, proposal, torch.zeros_like(origin).unsqueeze(0))
    if target.latent.num_coordinates <= DENSE:
        noise = _antithetic(origin)
        for _ in range(AVERAGED_STEPS):
            proposal = _improved(target, proposal, proposal.root(noise))
    return proposal


def _identity(u: Tensor) -> Tensor:
    return u


def _improved(target: Target, proposal: Proposal, offsets: Tensor) -> Proposal:
    """Make one Newton step with derivatives averaged over the points mean + offsets; offsets are [points, T, P]."""
    mean = proposal.mean
    slopes, roots = zip(*(target.derivatives(mean + offset) for offset in offsets), strict=True)
    precision = precision_of(list(roots))
    direction = -precision.solve(mean + torch.stack(slopes).mean(0))
    return Proposal(_best(target, mean, direction, offsets), precision.root, precision.log_det)


def _antithetic(like: Tensor) -> Tensor:
    """Draw PAIRS standard normal tensors u of the shape of `like`; return all u, then all -u."""
    with drawing():
        noise = torch.randn(PAIRS, *like.shape, dtype=like.dtype, device=like.device)
    return torch.cat((noise, -noise))


def _best(target: Target, mean: Tensor, direction: Tensor, offsets: Tensor) -> Tensor:
    """Move the mean of each task along `direction`, by the step length with the largest average of log f.

    The average is over the points mean + offsets. The step lengths to choose from are FACTORS and 0.
    """
    lengths = torch.tensor((*FACTORS, 0.0), dtype=mean.dtype, device=mean.device).view(-1, 1, 1)
    means = mean + lengths * direction  # [lengths, T, P]
    points = (means.unsqueeze(1) + offsets).flatten(0, 1)
    values = target(points).unflatten(0, (len(lengths), -1)).mean(1).nan_to_num(-torch.inf, neginf=-torch.inf)
    index = values.argmax(0).view(1, -1, 1).expand(1, *mean.shape)
    return means.gather(0, index).squeeze(0)
