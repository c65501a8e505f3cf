"""Divergences between distributions of the latent of a task: closed forms, bounds, and undefined cases."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Delta, ImproperUniform, MixtureSameFamily, Normal, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions import Normal as TorchNormal

from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.errors import UsageError

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)  # the same density, over other axes
TORCH_GAUSSIANS = (TorchNormal, MultivariateNormal, LowRankMultivariateNormal)


def innermost(distribution: Any) -> Distribution:
    """The distribution inside the wrappers of to_event, mask and expand; a TransformedDistribution is no wrapper."""
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    return distribution


def has_density(distribution: Any) -> bool:
    """False for a point estimate (Delta) and for the improper flat prior, which have no bound, KL or entropy."""
    if isinstance(distribution, Joint):
        return all(map(has_density, distribution.examples.values()))
    inner = innermost(distribution)
    if isinstance(inner, TransformedDistribution):
        return has_density(inner.base_dist)
    return not isinstance(inner, Delta | ImproperUniform)


def log_density(distribution: TorchDistribution, w: Tensor) -> Tensor:
    """log p(w) [..., batch] in nats.

    Raises:
        UsageError: the distribution is a flow that cannot be inverted at w.
    """
    try:
        return distribution.log_prob(w)
    except (KeyError, NotImplementedError) as error:
        raise density_error(error) from None


def density_error(error: Exception) -> Exception:
    """A UsageError for a density that cannot be computed; a KeyError of another origin is returned unchanged."""
    if isinstance(error, KeyError) and "intermediates cache" not in str(error):  # the message of Pyro's planar flow
        return error
    return UsageError(
        "expected a distribution whose density can be computed at any value, got one that cannot, such as a flow that "
        "inverts only its last draw (planar, radial); use a flow with an inverse (affine, coupling, spline)"
    )


def log_ratio(q: TorchDistribution, p: TorchDistribution, w: Tensor) -> Tensor:
    """log q(w) - log p(w) [..., batch] in nats at draws w of q; for a Delta, log q is its attribute `log_density`."""
    return log_density(q, w) - log_density(p, w)


def closed_form_kl(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """KL(q, p) [batch] in nats, or None without a closed form; for a Delta, `log_ratio` at its point.

    Closed forms are those of torch and Pyro, and that of any Gaussian q for a diagonal Gaussian p.
    """
    if isinstance(innermost(q), Delta):
        return log_ratio(q, p, q.mean)  # Pyro's closed form leaves out the log density of the Delta
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        inner = innermost(p)
        if isinstance(innermost(q), TORCH_GAUSSIANS) and isinstance(inner, TorchNormal):
            return kl_to_diagonal(q, inner)
        return None


def kl_to_diagonal(q: TorchDistribution, p: TorchNormal) -> Tensor:
    """KL(q, p) [*batch] in nats for a Gaussian q and a diagonal Gaussian p.

    It is the cross-entropy, which depends only on the marginal variances of q, minus the entropy of q.
    """
    squared = (q.variance + (q.mean - p.mean).square()) / p.variance
    cross = 0.5 * (squared + p.variance.log() + math.log(2 * math.pi))
    return cross.flatten(len(q.batch_shape)).sum(-1) - q.entropy()


def entropy_of(distribution: TorchDistribution) -> Tensor | None:
    """Differential entropy [batch] in nats if there is a closed form, else None (a mixture has none)."""
    try:
        return distribution.entropy()
    except NotImplementedError:
        return None


def kl_by_dimension(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """KL(q, p) of each weight [*batch, *event] in nats for two diagonal Gaussians, else None."""
    inner_q, inner_p = innermost(q), innermost(p)
    if isinstance(inner_q, TorchNormal) and isinstance(inner_p, TorchNormal):
        return kl_divergence(inner_q, inner_p)
    return None


def mixture_kl_variational_bound(q: TorchDistribution, mixture: TorchDistribution) -> Tensor:
    """-sum_c log sum_j pi_j exp(-KL(q_c, N_j)) >= KL(q, mixture), [batch] in nats.

    This upper bound follows from Jensen's inequality (the variational bound of Hershey and Olsen 2007, with one
    component on the left). It is exact if all components are equal. It is never larger than the convexity bound.

    Args:
        q: a normal distribution with event [C, D].
        mixture: independent over classes, with components N_j over D.
    """
    log_weights, kl = _kl_to_components(q, mixture)
    return -torch.logsumexp(log_weights - kl, -1).sum(-1)


def mixture_kl_convexity_bound(q: TorchDistribution, mixture: TorchDistribution) -> Tensor:
    """sum_c sum_j pi_j KL(q_c, N_j) >= KL(q, mixture), [batch] in nats, since KL is convex in its second argument.

    The bound is loose if components are far apart. Args: as in `mixture_kl_variational_bound`.
    """
    log_weights, kl = _kl_to_components(q, mixture)
    return (log_weights.exp() * kl).sum((-1, -2))


def _kl_to_components(q: TorchDistribution, mixture: TorchDistribution) -> tuple[Tensor, Tensor]:
    """log pi_j and KL(q_c, N_j) [..., T, C, M] for the M components of the mixture."""
    per_class: Any = innermost(mixture)  # batch [..., T, C], event [D]
    normal: Any = innermost(q)
    q_class = Normal(normal.mean.unsqueeze(-2), normal.stddev.unsqueeze(-2)).to_event(1)  # [..., T, C, 1]
    return per_class.mixture_distribution.logits, kl_divergence(q_class, per_class.component_distribution)


KL_BOUNDS = {"variational": mixture_kl_variational_bound, "convexity": mixture_kl_convexity_bound}


def mixture_kl_bounds(q: TorchDistribution, p: TorchDistribution) -> dict[str, Tensor]:
    """Both closed-form upper bounds on KL(q, p) [T] for a normal q and a mixture p, by name; {} for other pairs."""
    if isinstance(innermost(q), TorchNormal) and isinstance(innermost(p), MixtureSameFamily):
        return {name: bound(q, p) for name, bound in KL_BOUNDS.items()}
    return {}


def check_gaussian(prior: TorchDistribution, needed_by: str) -> None:
    """Raise a UsageError if the prior is not Gaussian; needed_by names the setting that needs it, as "guide=abml"."""
    if not isinstance(innermost(prior), TorchNormal):
        got = type(innermost(prior)).__name__
        raise UsageError(f"expected a Gaussian prior for {needed_by}, got {got}; use prior=gaussian")


def differentiable_divergence(q: TorchDistribution, p: TorchDistribution) -> Tensor:
    """The regulariser of an inner loop [T] in nats: KL(q, p), or its variational bound if p is a mixture.

    For a Delta it is `log_ratio`.

    Raises:
        UsageError: the KL of this pair has no closed form.
    """
    if isinstance(innermost(p), ImproperUniform) and has_density(q):
        return -q.entropy()  # the KL to a flat prior, up to its unknown constant
    if isinstance(innermost(p), MixtureSameFamily) and has_density(q):
        return mixture_kl_variational_bound(q, p)
    kl = closed_form_kl(q, p)
    if kl is None:
        got = f"{type(innermost(q)).__name__} and {type(innermost(p)).__name__}"
        raise UsageError(f"expected a prior with a closed-form KL for an inner loop, got {got}; use prior=gaussian")
    return kl


def entropy_by_class(probs: Tensor, mask: Tensor) -> Tensor:
    """H_c [T, C, 1] in nats: the mean entropy of predictions [T, Q, C], each weighted by its probability of class c."""
    entropy = -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1, keepdim=True)
    share = probs * mask.unsqueeze(-1)
    return (share * entropy).sum(1).div(share.sum(1).clamp(min=1e-6)).unsqueeze(-1)
