"""The family of q at the result theta^K of an inner loop: a point estimate, or a Gaussian with a learned scale."""

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
    """Module that computes the scale sigma of q = N(theta^K, diag(sigma^2)).

    An amortized sigma depends on task and class; any other sigma is the same for all tasks and classes.

    Args:
        num_weights: number W of weights per class.
        scale: initial value of sigma.
        amortized: whether sigma is multiplied by exp(network(theta^0)). The factor is 1 before training.
        learned: whether sigma is a parameter.
    """

    def __init__(self, num_weights: int, scale: float, amortized: bool = False, learned: bool = True) -> None:
        super().__init__()
        if scale <= 0:
            raise UsageError(f"expected guide.scale > 0, got {scale}; set guide.scale to a positive number")
        start = torch.full((num_weights,), scale).log()
        self.log_scale: Tensor
        if learned:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.network = _network(num_weights) if amortized else None

    def forward(self, start: Tensor) -> Tensor:
        """Compute sigma from theta^0 [T, C, W]: [W], or [T, C, W] if amortized."""
        log_ratio = 0.0 if self.network is None else self.network(start)
        return (self.log_scale + log_ratio).clamp(-10, 4).exp()


def _network(num_weights: int) -> nn.Module:
    last = nn.Linear(num_weights, num_weights)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_weights, num_weights), nn.ELU(), last)


def scale_of_family(family: str, num_weights: int, scale: float) -> Scale | None:
    """Construct the scale of a family: `normal` (learned), `amortized` or `fixed` (sigma = scale); None for `delta`."""
    check_choice("guide.posterior", family, FAMILIES)
    if family == "delta":
        return None
    return Scale(num_weights, scale, family == "amortized", learned=family != "fixed")


def around(loc: Tensor, scale: Tensor | None) -> TorchDistribution:
    """Return N(loc, diag(scale^2)), batch [T], event [C, W]; a Delta at loc if scale is None."""
    return Delta(loc, event_dim=2) if scale is None else Normal(loc, scale).to_event(2)


def draws_around(loc: Tensor, scale: Tensor | None, num_samples: int) -> Tensor:
    """Draw num_samples samples from N(loc, diag(scale^2)); return loc if num_samples = 0 or scale is None."""
    if not num_samples or scale is None:
        return loc
    return loc + scale * task_noise((num_samples, *loc.shape), loc, task_dim=1)


def kl_gradient(loc: Tensor, scale: Tensor | None, prior: TorchDistribution) -> Tensor:
    """Compute the gradient of KL(q, prior) with respect to the mean loc of q = N(loc, diag(scale^2)).

    loc is [T, C, W], for T tasks and C classes with W weights each. For a mixture prior, an upper bound replaces the
    KL. If scale is None, the result is the gradient of -log prior(loc).
    """
    return grad(lambda theta: differentiable_divergence(around(theta, scale), prior).sum())(loc)


@dataclass(eq=False)
class ClassCovariance:
    """Covariance Sigma of the W weights of a class, with a term along the differences m_c of class weights.

        Sigma = diag(scale^2) + spread^2 sum_c m_c m_c^T
        m_c = theta_c - (1/C) sum_c theta_c

    Attributes:
        scale: standard deviations of the weights, broadcast with [T, C, W].
        spread: standard deviations along the differences, broadcast with [T, C, 1]; None: no such term.
        differences: [T, C, W], the differences m_c of the class weights theta_c from their mean over classes.
    """

    scale: Tensor
    spread: Tensor | None
    differences: Tensor

    @classmethod
    def at(cls, theta: Tensor, scale: Tensor, spread: Tensor | None) -> ClassCovariance:
        """Construct the covariance with the differences m_c of the class weights theta [T, C, W]."""
        return cls(scale, spread, theta - theta.mean(1, keepdim=True))

    def around(self, loc: Tensor) -> TorchDistribution:
        """Return the Gaussian N(loc, Sigma) with mean loc [T, C, W]."""
        if self.spread is None:
            return Normal(loc, self.scale).to_event(2)
        factor = (self.spread.unsqueeze(-1) * self.differences.mT.unsqueeze(1)).expand(*loc.shape, -1)
        with WithoutWaiting():
            return LowRankMultivariateNormal(loc, factor, self.scale.square().expand(loc.shape)).to_event(1)

    def step(self, theta: Tensor, slope: Tensor) -> Tensor:
        """Take the preconditioned gradient step theta - Sigma slope; `slope` is the gradient at theta [T, C, W]."""
        loc = theta - self.scale.square() * slope
        if self.spread is None:
            return loc
        return loc - self.spread.square() * (slope @ self.differences.mT @ self.differences)

    def with_precision(self, log_precision: Tensor, log_between: Tensor | None) -> ClassCovariance:
        """Return the covariance with exp(log_precision) added to 1 / scale^2, and exp(log_between) to 1 / spread^2."""
        spread = self.spread
        if spread is not None and log_between is not None:
            spread = _with_precision(spread, log_between)
        return replace(self, scale=_with_precision(self.scale, log_precision), spread=spread)


def _with_precision(scale: Tensor, log_precision: Tensor) -> Tensor:
    """Return the standard deviation after adding exp(log_precision) to the precision 1 / scale^2."""
    return (scale.square().reciprocal() + log_precision.exp()).rsqrt()


def class_probabilities(model: Model, outputs: Tensor) -> Tensor:
    """Compute the class probabilities p(y = c | outputs) [..., C] of the likelihood over C classes."""
    if model.canonical:
        return outputs.softmax(-1)
    family: Any = innermost(model.likelihood_of(outputs))
    return family.probs


def class_entropies(model: Model, theta: Tensor, observed: Observed) -> Tensor:
    """Compute the mean predictive entropy over the queries at w = theta for each class c, weighted by p(y = c).

    Returns:
        Tensor [T, C, 1] for T tasks and C classes, in nats.
    """
    probs = class_probabilities(model, model.outputs(theta, observed.query_x))
    return entropy_by_class(probs, observed.query_mask)
