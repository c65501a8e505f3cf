"""Class means after a step of a transductive classifier, and the rates of the steps."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_metabayes.transductive.amortized.task_geometry import TaskGeometry, cosines_without

NUM_RATES = 5


class Rates(NamedTuple):
    """Learned parameters of the steps for each of T tasks, each [T, 1, 1]; symbols as in `AmortizedSteps`."""

    scale: Tensor  # s, inverse temperature of the assignments
    of_shares: Tensor  # beta, weight of the log class shares
    of_support: Tensor  # kappa, weight of the support set
    step: Tensor  # rho, step size
    sharpness: Tensor  # inverse temperature of the affinities between points

    @classmethod
    def of(cls, raw: Tensor) -> Self:
        """Map unconstrained numbers [T, NUM_RATES] to the ranges of the rates."""
        scale, of_shares, of_support, step, sharpness = raw[..., None, None].unbind(1)
        return cls(
            scale=10 * scale.exp(),
            of_shares=softplus(of_shares - 2),
            of_support=(of_support + 1).exp(),
            step=(step + 1.5).sigmoid(),
            sharpness=4 * softplus(sharpness + 3),
        )


class State(NamedTuple):
    """Class means of T tasks after a step, and quantities computed from the class means.

    The class means are sum_i own_ic x_i + terms of the support set, where x_i are the queries.
    """

    rates: Rates
    means: Tensor  # class means [T, C, D]
    own: Tensor  # coefficient own_ic of each query in the class means [T, Q, C]
    cosines: Tensor  # cosines of the queries with the class means [T, Q, C]
    left_out: Tensor  # cosines of each query with the class means without this query [T, Q, C]
    lengths: Tensor  # lengths of the class means [T, C]
    bias: Tensor  # log(C pi) of the class shares pi [T, 1, C]; 0 if the queries are known to be balanced
    term: Tensor | None = None  # Sinkhorn's class term [T, 1, C]
    before: Tensor | None = None  # soft assignments by `left_out` before the step [T, Q, C]; None: no step yet

    @classmethod
    def initial(cls, points: TaskGeometry, rates: Rates) -> Self:
        """Return the class means of the support set, and equal class shares."""
        cosines, lengths = points.cosines(points.means)
        own = torch.zeros_like(cosines)
        return cls(rates, points.means, own, cosines, cosines, lengths, bias=torch.zeros_like(cosines[:, :1]))

    def moved(self, points: TaskGeometry, weights: Tensor) -> Self:
        """Return the state with the class means after an M-step (the update of m_c in `AmortizedSteps`).

        Args:
            points: points of the tasks.
            weights: [T, Q, C], products g_i z_ic of weight and soft assignment of each query.
        """
        weights = (weights * points.mask.unsqueeze(-1)).mT
        support = self.rates.of_support * points.counts.sqrt().unsqueeze(-1)  # [T, C, 1]
        total = (support + weights.sum(-1, keepdim=True)).clamp(min=1e-6)
        target = (support * points.means + weights @ points.x) / total
        means = torch.lerp(self.means, target, self.rates.step)
        own = torch.lerp(self.own, (weights / total).mT, self.rates.step)
        cosines, lengths = points.cosines(means)
        left_out = cosines_without(points.x, cosines * lengths.unsqueeze(1), lengths, own)
        return self._replace(means=means, own=own, cosines=cosines, left_out=left_out, lengths=lengths)
