"""Generalised linear mixed models with one effect per group: maximum likelihood by quadrature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError, check_choice

FAMILIES = ("bernoulli", "poisson")
# The trapezoid rule with NODES nodes, up to REACH sds of the prior: exact to many digits for posteriors wider than .03.
REACH, NODES = 8.0, 641


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
    effects: Tensor  # posterior means of coefficients[0] + u_g [T]
    effects_sd: Tensor  # [T]


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
    nodes = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    log_weights = -0.5 * nodes.square()
    log_weights = log_weights - log_weights.logsumexp(0)
    theta = torch.zeros(points.x.shape[1] + 1, dtype=torch.float64).requires_grad_()

    def log_joint() -> Tensor:
        """Compute log p(y_g, u) per quadrature node and group g, up to a constant, for u = sd * node."""
        fixed = points.x @ theta[:-1] + points.offset
        eta = fixed + points.x[:, 0] * theta[-1].exp() * nodes.unsqueeze(1)
        terms = likelihood_of(eta, family).log_prob(points.y)
        of_groups = terms.new_zeros(NODES, points.num_groups).index_add(1, points.group, terms)
        return of_groups + log_weights.unsqueeze(1)

    optimiser = torch.optim.LBFGS([theta], max_iter=300, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -log_joint().logsumexp(0).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        joint, sd = log_joint(), theta[-1].exp()
        after, u = joint.softmax(0), sd * nodes.unsqueeze(1)
        mean = (after * u).sum(0)
        spread = (after * (u - mean).square()).sum(0).sqrt()
    return GeneralisedEffects(
        theta.detach()[:-1], sd, joint.logsumexp(0).sum().item(), theta.detach()[0] + mean, spread
    )
