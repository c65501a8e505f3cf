"""The family of q around the result of an inner loop: a point estimate, or a Gaussian with a learned scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import Delta, LowRankMultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn
from torch.func import grad

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.cholesky import WithoutWaiting
from pyro_metabayes.inference.divergences import differentiable_divergence, entropy_by_class, innermost
from pyro_metabayes.model import Model
from pyro_metabayes.seeding import task_noise

FAMILIES = ("normal", "amortized", "fixed", "delta")


class Scale(nn.Module):
    """sigma of q = N(theta^K, diag(sigma^2)), a vector [W] that classes and tasks share.

    Args:
        num_weights: W.
        scale: initial value of sigma.
        amortized: whether sigma is multiplied by the exponential of a network of theta^0 [T, C, W], initially 1.
        learned: whether sigma is a parameter.
    """

    def __init__(self, num_weights: int, scale: float, amortized: bool = False, learned: bool = True) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"expected guide.scale > 0, got {scale}")
        start = torch.full((num_weights,), scale).log()
        self.log_scale: Tensor
        if learned:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.network = _network(num_weights) if amortized else None

    def forward(self, start: Tensor) -> Tensor:
        """sigma [W] or [T, C, W] from theta^0."""
        log_ratio = 0.0 if self.network is None else self.network(start)
        return (self.log_scale + log_ratio).clamp(-10, 4).exp()


def _network(num_weights: int) -> nn.Module:
    last = nn.Linear(num_weights, num_weights)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_weights, num_weights), nn.ELU(), last)


def scale_of_family(family: str, num_weights: int, scale: float) -> Scale | None:
    """The scale of a family: `normal` (learned), `amortized`, `fixed` (sigma = scale), or None for `delta`."""
    check_choice("guide.posterior", family, FAMILIES)
    if family == "delta":
        return None
    return Scale(num_weights, scale, family == "amortized", learned=family != "fixed")


def around(loc: Tensor, scale: Tensor | None) -> TorchDistribution:
    """N(loc, diag(scale^2)), or without a scale the point estimate at loc: batch [T], event [C, W]."""
    return Delta(loc, event_dim=2) if scale is None else Normal(loc, scale).to_event(2)


def draws_around(loc: Tensor, scale: Tensor | None, num_samples: int) -> Tensor:
    """Draws w [L, T, C, W] from N(loc, diag(scale^2)), L = num_samples; loc itself if L = 0 or there is no scale."""
    if not num_samples or scale is None:
        return loc
    return loc + scale * task_noise((num_samples, *loc.shape), loc, task_dim=1)


def kl_gradient(loc: Tensor, scale: Tensor | None, prior: TorchDistribution) -> Tensor:
    """Gradient [T, C, W] with respect to loc of KL(q, prior).

    For a mixture it is the gradient of a bound on the KL, and for a point estimate that of -log prior(loc).
    """
    return grad(lambda theta: differentiable_divergence(around(theta, scale), prior).sum())(loc)


@dataclass(eq=False)
class ClassCovariance:
    """Sigma = diag(scale^2) + spread^2 sum_c m_c m_c^T, the covariance of the weights of each class.

    scale: standard deviations, broadcasting with [T, C, W].
    spread: standard deviations along the differences of the classes, broadcasting with [T, C, 1]; None omits them.
    differences: m_c = theta_c - (1/C) sum_c theta_c [T, C, W].
    """

    scale: Tensor
    spread: Tensor | None
    differences: Tensor

    @classmethod
    def at(cls, theta: Tensor, scale: Tensor, spread: Tensor | None) -> ClassCovariance:
        """The covariance whose differences are those of theta [T, C, W]."""
        return cls(scale, spread, theta - theta.mean(1, keepdim=True))

    def around(self, loc: Tensor) -> TorchDistribution:
        """N(loc, Sigma) for loc [T, C, W]."""
        if self.spread is None:
            return Normal(loc, self.scale).to_event(2)
        factor = (self.spread.unsqueeze(-1) * self.differences.mT.unsqueeze(1)).expand(*loc.shape, -1)
        with WithoutWaiting():
            return LowRankMultivariateNormal(loc, factor, self.scale.square().expand(loc.shape)).to_event(1)

    def step(self, theta: Tensor, slope: Tensor) -> Tensor:
        """theta - Sigma slope [T, C, W], slope the gradient of a loss with respect to theta."""
        loc = theta - self.scale.square() * slope
        if self.spread is None:
            return loc
        return loc - self.spread.square() * (slope @ self.differences.mT @ self.differences)

    def with_precision(self, log_precision: Tensor, log_between: Tensor | None) -> ClassCovariance:
        """The covariance after exp(log_precision) is added to 1 / scale^2, and exp(log_between) to 1 / spread^2."""
        spread = self.spread
        if spread is not None and log_between is not None:
            spread = _with_precision(spread, log_between)
        return replace(self, scale=_with_precision(self.scale, log_precision), spread=spread)


def _with_precision(scale: Tensor, log_precision: Tensor) -> Tensor:
    """The standard deviation after exp(log_precision) is added to the precision."""
    return (scale.square().reciprocal() + log_precision.exp()).rsqrt()


def class_probabilities(model: Model, outputs: Tensor) -> Tensor:
    """p(y = c | outputs) [..., C] of a likelihood over classes."""
    if model.canonical:
        return outputs.softmax(-1)
    family: Any = innermost(model.likelihood_of(outputs))
    return family.probs


def class_entropies(model: Model, theta: Tensor, observed: Observed) -> Tensor:
    """H_c [T, C, 1] in nats: the mean predictive entropy of the queries at theta, weighted by their p(y = c)."""
    probs = class_probabilities(model, model.outputs(theta, observed.query_x))
    return entropy_by_class(probs, observed.query_mask)
