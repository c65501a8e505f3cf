"""Generalised linear mixed models: maximum likelihood by quadrature, for one effect of each group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import Bernoulli, Poisson, TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError, check_choice

FAMILIES = ("bernoulli", "poisson")
REACH, NODES = 8.0, 641  # in sds of the prior: the trapezoid rule is exact to many digits for posteriors wider than .03


@dataclass(frozen=True)
class Points:
    """The points of all groups, one after the other, in float64.

    x: [N, D]; of which the first R have effects of groups.
    y: [N].
    offset: [N].
    group: number of the group of each point [N].
    """

    x: Tensor
    y: Tensor
    offset: Tensor
    group: Tensor
    num_groups: int


@dataclass(frozen=True)
class GeneralisedEffects:
    """eta_i = x_i . coefficients + offset_i + z_i u_g, u_g ~ N(0, sd^2), z_i the first feature of x_i."""

    coefficients: Tensor  # [D]
    sd: Tensor  # a scalar
    log_likelihood: float  # of all points, in nats
    effects: Tensor  # posterior means of coefficients[0] + u_g [T]
    effects_sd: Tensor  # [T]


def points_of(episodes: Episodes, has_offset: bool) -> Points:
    """The query points of groups.

    Args:
        episodes: groups as tasks, all points of which are queries, with one number as label.
        has_offset: whether the last feature is an offset.

    Raises:
        UsageError: support points, or labels of several numbers.
    """
    if episodes.query_y.shape[-1] != 1 or episodes.support_mask.any():
        raise UsageError("expected groups of points with one number as label, all of them queries; see Groups.whole")
    episodes = episodes.to("cpu")
    mask = episodes.query_mask
    group = torch.arange(len(mask)).unsqueeze(1).expand(mask.shape)[mask]
    x, y = episodes.query_x[mask].double(), episodes.query_y[mask].squeeze(-1).double()
    offset = x[:, -1] if has_offset else torch.zeros_like(y)
    return Points(x[:, :-1] if has_offset else x, y, offset, group, len(mask))


def likelihood_of(eta: Tensor, family: str) -> TorchDistribution:
    """Bernoulli(sigmoid(eta)) or Poisson(exp(eta))."""
    check_choice("data.family", family, FAMILIES)
    return Bernoulli(logits=eta) if family == "bernoulli" else Poisson(eta.exp())


def fit_by_quadrature(points: Points, family: str) -> GeneralisedEffects:
    """Maximum likelihood: log p(y_g) = log of the integral of prod_i p(y_i | x_i, u) N(u; 0, sd^2) du.

    lme4 computes the same with `glmer(..., nAGQ = 25)`; its default is the Laplace approximation.
    """
    nodes = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    log_weights = -0.5 * nodes.square()
    log_weights = log_weights - log_weights.logsumexp(0)
    theta = torch.zeros(points.x.shape[1] + 1, dtype=torch.float64).requires_grad_()

    def log_joint() -> Tensor:
        """log p(y_g, u = sd node) + constant [NODES, T]."""
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
