"""Generalised linear mixed models with one effect per group: maximum likelihood by quadrature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError, check_choice

FAMILIES = ("bernoulli", "poisson")
# Trapezoid rule with NODES nodes up to REACH prior sds: exact to many digits if a posterior sd exceeds 0.03 prior sds.
REACH, NODES = 8.0, 641
NARROWEST = 0.03  # least posterior sd of an effect, in sds of the prior, for which derivatives of the sum are exact
MOST_POINTS = 20_000  # for second derivatives, which keep several arrays [NODES, points]


@dataclass(frozen=True)
class Points:
    """The N points of all groups, concatenated, in float64.

    Attributes:
        x: [N, D], features.
        y: [N], labels.
        offset: [N], offsets of the linear predictor.
        group: [N], index of the group of each point.
        num_groups: number of groups.
    """

    x: Tensor
    y: Tensor
    offset: Tensor
    group: Tensor
    num_groups: int


@dataclass(frozen=True)
class GeneralisedEffects:
    """Estimates of a generalised linear mixed model with one effect u_g ~ N(0, sd^2) per group g.

    The linear predictor is eta_i = x_i . coefficients + offset_i + z_i u_g, where z_i is the first feature of x_i.
    """

    coefficients: Tensor  # [D]
    sd: Tensor  # a scalar
    log_likelihood: float  # of all points, in nats
    effects: Tensor  # posterior means of coefficients[0] + u_g [T], for T groups
    effects_sd: Tensor  # posterior standard deviations of u_g [T]


def points_of(episodes: Episodes, has_offset: bool) -> Points:
    """Concatenate the query points of all groups.

    Args:
        episodes: groups as tasks, with all points as queries and one number per label.
        has_offset: whether the last feature is an offset of the linear predictor.

    Raises:
        UsageError: there are support points, or labels have several numbers.
    """
    if episodes.query_y.shape[-1] != 1 or episodes.support_mask.any():
        raise UsageError(
            "expected only queries with one number per label, got support points or several numbers per label; use "
            "Groups.whole"
        )
    episodes = episodes.to("cpu")
    mask = episodes.query_mask
    group = torch.arange(len(mask)).unsqueeze(1).expand(mask.shape)[mask]
    x, y = episodes.query_x[mask].double(), episodes.query_y[mask].squeeze(-1).double()
    offset = x[:, -1] if has_offset else torch.zeros_like(y)
    return Points(x[:, :-1] if has_offset else x, y, offset, group, len(mask))


def likelihood_of(eta: Tensor, family: str) -> TorchDistribution:
    """Return the likelihood Bernoulli(sigmoid(eta)) or Poisson(exp(eta)) of a linear predictor eta [...]."""
    check_choice("data.family", family, FAMILIES)
    return Bernoulli(logits=eta) if family == "bernoulli" else Poisson(eta.exp())


def fit_by_quadrature(points: Points, family: str) -> GeneralisedEffects:
    """Fit a generalised linear mixed model with one effect u per group by maximum likelihood.

    The likelihood p(y_g) of group g is computed by quadrature over u:

        p(y_g) = ∫ prod_i p(y_i | x_i, u) N(u; 0, sd^2) du

    The function `glmer(..., nAGQ = 25)` of lme4 computes the same estimates.

    Args:
        points: the points of all groups.
        family: "bernoulli" or "poisson".
    """
    theta = torch.zeros(points.x.shape[1] + 1, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=300, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -_log_joint(points, family, theta).logsumexp(0).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        joint, sd = _log_joint(points, family, theta), theta[-1].exp()
        after, u = joint.softmax(0), sd * _nodes().unsqueeze(1)
        mean = (after * u).sum(0)
        spread = (after * (u - mean).square()).sum(0).sqrt()
    return GeneralisedEffects(
        theta.detach()[:-1], sd, joint.logsumexp(0).sum().item(), theta.detach()[0] + mean, spread
    )


def covariance_of_estimates(points: Points, family: str, coefficients: Tensor, sd: Tensor) -> Tensor | None:
    """Compute the inverse of the observed information of coefficients and log sd [D + 1, D + 1], by quadrature.

    The information is -d^2 log p(y) at these values. The result is None if the information is not positive definite,
    if the posterior of a group is too narrow for the nodes, or if there are more than MOST_POINTS points.

    Args:
        points: the points of all groups.
        family: "bernoulli" or "poisson".
        coefficients: [D].
        sd: standard deviation of the effects, a scalar.
    """
    theta = torch.cat((coefficients, sd.log().view(1))).double()
    if len(points.y) > MOST_POINTS or _posterior_width(points, family, theta).min() < NARROWEST:
        return None
    curvature = torch.autograd.functional.hessian(lambda at: -_log_joint(points, family, at).logsumexp(0).sum(), theta)
    factor, failed = torch.linalg.cholesky_ex(curvature)
    return None if failed else torch.cholesky_inverse(factor)


def _posterior_width(points: Points, family: str, theta: Tensor) -> Tensor:
    """Compute the posterior sd of the effect of each group, divided by the sd of the prior [T]."""
    with torch.no_grad():
        after, nodes = _log_joint(points, family, theta).softmax(0), _nodes().unsqueeze(1)
        return (after * (nodes - (after * nodes).sum(0)).square()).sum(0).sqrt()


def _nodes() -> Tensor:
    return torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)


def _log_joint(points: Points, family: str, theta: Tensor) -> Tensor:
    """Compute log p(y_g, u) up to a constant per quadrature node and group g, for labels y_g and u = sd * node.

    theta holds the coefficients and the log sd. The sum over nodes of exp(log_joint) is the likelihood of a group.
    """
    nodes = _nodes()
    log_weights = -0.5 * nodes.square()
    log_weights = log_weights - log_weights.logsumexp(0)
    fixed = points.x @ theta[:-1] + points.offset
    eta = fixed + points.x[:, 0] * theta[-1].exp() * nodes.unsqueeze(1)
    terms = likelihood_of(eta, family).log_prob(points.y)
    of_groups = terms.new_zeros(NODES, points.num_groups).index_add(1, points.group, terms)
    return of_groups + log_weights.unsqueeze(1)
