"""Divergences between distributions of the weights of a task: closed forms, bounds, and undefined cases."""

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
    """Return the distribution inside `to_event`, `mask` and `expand`; a TransformedDistribution is not unwrapped."""
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    return distribution


def has_density(distribution: Any) -> bool:
    """Return whether a distribution has a density: false for a point estimate (Delta) and for the flat prior."""
    if isinstance(distribution, Joint):
        return all(map(has_density, distribution.examples.values()))
    inner = innermost(distribution)
    if isinstance(inner, TransformedDistribution):
        return has_density(inner.base_dist)
    return not isinstance(inner, Delta | ImproperUniform)


def log_density(distribution: TorchDistribution, w: Tensor) -> Tensor:
    """Compute log p(w) [..., *batch] in nats.

    Raises:
        UsageError: the distribution is a flow that cannot be inverted at w.
    """
    try:
        return distribution.log_prob(w)
    except (KeyError, NotImplementedError) as error:
        raise density_error(error) from None


def density_error(error: Exception) -> Exception:
    """Return a UsageError for an error of log_prob of a flow; a KeyError with another cause is returned unchanged."""
    if isinstance(error, KeyError) and "intermediates cache" not in str(error):  # the message of Pyro's planar flow
        return error
    return UsageError(
        "expected a distribution whose density can be computed at any value, got a flow without inverse, such as a "
        "planar or radial flow; use a flow with an inverse (affine, coupling, spline)"
    )


def log_ratio(q: TorchDistribution, p: TorchDistribution, w: Tensor) -> Tensor:
    """Compute log q(w) - log p(w) [..., *batch] in nats at draws w of q. For a Delta q, log q(w) is q.log_density."""
    return log_density(q, w) - log_density(p, w)


def closed_form_kl(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """Compute KL(q, p) [*batch] in nats; None without a closed form.

    Closed forms are those of torch and Pyro, and the KL of any Gaussian q to a diagonal Gaussian p. For a point
    estimate q (Delta), the result is log q - log p at the point.
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
    """Compute KL(q, p) [*batch] in nats for any Gaussian q and a diagonal Gaussian p.

    The result is the cross-entropy minus the entropy of q. Only means and marginal variances of q enter the
    cross-entropy.
    """
    squared = (q.variance + (q.mean - p.mean).square()) / p.variance
    cross = 0.5 * (squared + p.variance.log() + math.log(2 * math.pi))
    return cross.flatten(len(q.batch_shape)).sum(-1) - q.entropy()


def entropy_of(distribution: TorchDistribution) -> Tensor | None:
    """Compute the differential entropy [*batch] in nats; None without a closed form, as for a mixture."""
    try:
        return distribution.entropy()
    except NotImplementedError:
        return None


def kl_by_dimension(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """Compute KL(q, p) per weight [*batch, *event] in nats for two diagonal Gaussians; None for others."""
    inner_q, inner_p = innermost(q), innermost(p)
    if isinstance(inner_q, TorchNormal) and isinstance(inner_p, TorchNormal):
        return kl_divergence(inner_q, inner_p)
    return None


def mixture_kl_variational_bound(q: TorchDistribution, mixture: TorchDistribution) -> Tensor:
    """Compute the variational upper bound on KL(q, mixture), [*batch] in nats.

        bound = -sum_c log sum_j pi_j exp(-KL(q_c, N_j))

    The bound is exact if all components are equal, and never larger than the convexity bound. (Hershey and Olsen 2007.)

    Args:
        q: a normal distribution with event [C, D]; q_c is the row of class c.
        mixture: the same mixture for each of the C classes, with weights pi_j and normal components N_j [D].
    """
    log_weights, kl = _kl_to_components(q, mixture)
    return -torch.logsumexp(log_weights - kl, -1).sum(-1)


def mixture_kl_convexity_bound(q: TorchDistribution, mixture: TorchDistribution) -> Tensor:
    """Compute the convexity upper bound sum_c sum_j pi_j KL(q_c, N_j) on KL(q, mixture), [*batch] in nats.

    The bound is loose if components are far apart. The arguments are those of `mixture_kl_variational_bound`.
    """
    log_weights, kl = _kl_to_components(q, mixture)
    return (log_weights.exp() * kl).sum((-1, -2))


def _kl_to_components(q: TorchDistribution, mixture: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return log pi_j and KL(q_c, N_j) [..., T, C, components], per task, class c and component N_j of the mixture."""
    per_class: Any = innermost(mixture)  # batch [..., T, C], event [D]
    normal: Any = innermost(q)
    q_class = Normal(normal.mean.unsqueeze(-2), normal.stddev.unsqueeze(-2)).to_event(1)  # [..., T, C, 1]
    return per_class.mixture_distribution.logits, kl_divergence(q_class, per_class.component_distribution)


KL_BOUNDS = {"variational": mixture_kl_variational_bound, "convexity": mixture_kl_convexity_bound}


def mixture_kl_bounds(q: TorchDistribution, p: TorchDistribution) -> dict[str, Tensor]:
    """Compute both upper bounds on KL(q, p) by name, for a normal q and a mixture p; {} for other q and p."""
    if isinstance(innermost(q), TorchNormal) and isinstance(innermost(p), MixtureSameFamily):
        return {name: bound(q, p) for name, bound in KL_BOUNDS.items()}
    return {}


def check_gaussian(prior: TorchDistribution, needed_by: str) -> None:
    """Raise a UsageError if the prior is not a diagonal Gaussian; `needed_by` is the setting in the message."""
    if not isinstance(innermost(prior), TorchNormal):
        got = type(innermost(prior)).__name__
        raise UsageError(f"expected a diagonal Gaussian prior for {needed_by}, got {got}; use prior=gaussian")


def differentiable_divergence(q: TorchDistribution, p: TorchDistribution) -> Tensor:
    """Compute a differentiable KL(q, p) per task [T] in nats, the regulariser of an inner loop.

    For a mixture p, the result is the variational bound. For a flat p, it is minus the entropy of q. For a point
    estimate q (Delta), it is log q - log p at the point.

    Raises:
        UsageError: the KL of these distributions has no closed form.
    """
    if isinstance(innermost(p), ImproperUniform) and has_density(q):
        return -q.entropy()  # the KL to a flat prior, up to its unknown constant
    if isinstance(innermost(p), MixtureSameFamily) and has_density(q):
        return mixture_kl_variational_bound(q, p)
    kl = closed_form_kl(q, p)
    if kl is None:
        got = f"posterior {type(innermost(q)).__name__}, prior {type(innermost(p)).__name__}"
        raise UsageError(f"expected a closed-form KL(posterior, prior) in an inner loop, got {got}; use prior=gaussian")
    return kl


def entropy_by_class(probs: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean predictive entropy over the queries for each class c, weighted by the probability of class c.

    Args:
        probs: class probabilities [T, Q, C], for Q queries of T tasks and C classes.
        mask: [T, Q], False for queries that are left out.

    Returns:
        Tensor [T, C, 1], in nats.
    """
    entropy = -(probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()).sum(-1, keepdim=True)
    share = probs * mask.unsqueeze(-1)
    return (share * entropy).sum(1).div(share.sum(1).clamp(min=1e-6)).unsqueeze(-1)
