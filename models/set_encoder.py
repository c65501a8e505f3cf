"""Set encoders: from the labelled points of a class to a distribution over its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.episodes import class_sums
from pyro_metabayes.inference.cholesky import cholesky


def elu_network(num_inputs: int, num_hidden: int, num_outputs: int, start: float | None = None) -> nn.Module:
    """Dense-ELU-Dense-ELU-Dense, VERSA's block; Dense alone for num_hidden=0.

    With `start` its output begins as that constant.
    """
    last = nn.Linear(num_hidden or num_inputs, num_outputs)
    if start is not None:
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, start)
    if num_hidden == 0:
        return last
    hidden = nn.Linear(num_hidden, num_hidden)
    return nn.Sequential(nn.Linear(num_inputs, num_hidden), nn.ELU(), hidden, nn.ELU(), last)


def lower_triangular(log_diagonal: Tensor, below: Tensor) -> Tensor:
    """A Cholesky factor [W, W]: exp of the first on the diagonal, below it each row in units of its diagonal."""
    unit = below.tril(-1) + torch.eye(len(below), dtype=below.dtype, device=below.device)
    return log_diagonal.exp().unsqueeze(-1) * unit


class SetEncoder(nn.Module):
    """Called with points x [T, N, D], labels and mask [T, N] and C: loc and scale [T, C, W] of each class.

    residual: loc starts from the (mean) features of the class, for weights that live in feature space,
    with zeros for weights that have no feature (the bias of a head); else it starts at 0.
    """

    pure = True  # a function of tensors: torch.compile may have it

    def __init__(self, num_weights: int, residual: bool) -> None:
        super().__init__()
        self.num_weights, self.residual = num_weights, residual

    def start(self, x: Tensor) -> Tensor:
        """What a network's output is added to: [..., D] -> [..., W]."""
        if self.residual:
            return functional.pad(x, (0, self.num_weights - x.shape[-1]))
        return x.new_zeros(*x.shape[:-1], self.num_weights)


class MeanPooled(SetEncoder):
    """loc_c = m_c + f(m_c), log scale_c = g(m_c), with m_c the mean of class c.

    As VERSA and SAMOVAR pool: it cannot see how many points stand behind the mean, so a shared
    prior and posterior are biased (docs/collapse.md). f and g are VERSA's blocks; scale starts as given.
    """

    def __init__(self, num_features: int, num_weights: int, num_hidden: int, scale: float, residual: bool) -> None:
        super().__init__(num_weights, residual)
        self.loc_net = elu_network(num_features, num_hidden, num_weights, start=0.0)
        self.log_scale_net = elu_network(num_features, num_hidden, num_weights, start=math.log(scale))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        sums, counts = class_sums(x, y, mask, num_classes)
        mean = sums / counts.clamp(min=1)
        return self.start(mean) + self.loc_net(mean), self.log_scale_net(mean).clamp(-10, 4).exp()


class CountAware(SetEncoder):
    """precision_c = a + sum_i b(x_i), loc_c = (a m + sum_i b(x_i) (x_i + f(x_i))) / precision_c.

    Natural parameters add up over points, so the scale shrinks as evidence comes in, and an empty
    class gets N(m, 1/a). For a Gaussian mean with known noise (b constant, x_i + f linear) it is the
    exact conditional prior and posterior at once. a and b are exp of a parameter and of a network; at
    the start a class of one point has the given scale, a fifth of its precision from a.
    """

    def __init__(self, num_features: int, num_weights: int, num_hidden: int, scale: float, residual: bool) -> None:
        super().__init__(num_weights, residual)
        # exp and not softplus: precisions of weights in feature space are in the hundreds, far for an optimiser.
        of_prior, of_point = (math.log(share / scale**2) for share in (0.2, 0.8))
        self.value_net = elu_network(num_features, num_hidden, num_weights, start=0.0)
        self.log_precision_net = elu_network(num_features, num_hidden, num_weights, start=of_point)
        self.prior_loc = nn.Parameter(torch.zeros(num_weights))
        self.prior_log_precision = nn.Parameter(torch.full((num_weights,), of_prior))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        values = self.start(x) + self.value_net(x)
        precisions = self.log_precision_net(x).clamp(-8, 20).exp()
        evidence = torch.cat((precisions, precisions * values), dim=-1)
        added, weighted = class_sums(evidence, y, mask, num_classes)[0].chunk(2, dim=-1)
        before = self.prior_log_precision.clamp(-8, 20).exp()
        precision = before + added
        return (before * self.prior_loc + weighted) / precision, precision.rsqrt()


class PseudoObservations(SetEncoder):
    """Every point is read as one observation u_i = b_i . w + e, e ~ N(0, 1), of weights with prior N(m, A^-1):

        precision_c = A + sum_i b_i b_i^T,  loc_c = precision_c^-1 (A m + sum_i b_i u_i),

    b_i = b(x_i) in R^W and u_i = b_i . x_i + f(x_i), or f(x_i) alone where weights do not live in feature space.
    A = L L^T has all its off-diagonal entries. Returns loc [T, C, W] and precision [T, C, W, W]; an empty class has
    N(m, A^-1). For a linear regression with known noise linear maps (num_hidden=0) hold the exact prior and posterior
    at once: b_i = x_i / noise, u_i = y_i / noise. (Potentials of a recognition network that are conjugate to the prior:
    Johnson et al. 2016, arXiv 1603.06277; aggregation as conditioning: Volpp et al. 2021, which is `CountAware`.)
    """

    def __init__(self, num_features: int, num_weights: int, num_hidden: int, scale: float, residual: bool) -> None:
        super().__init__(num_weights, residual)
        self.value_net = elu_network(num_features, num_hidden, 1, start=0.0)
        # All points alike: a random network would start with directions of either sign, which hardly turn round again.
        self.direction_net = elu_network(num_features, num_hidden, num_weights, start=0.5 / scale)
        self.prior_loc = nn.Parameter(torch.zeros(num_weights))
        self.log_diagonal = nn.Parameter(torch.full((num_weights,), -math.log(scale)))
        self.below = nn.Parameter(torch.zeros(num_weights, num_weights))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        direction = self.direction_net(x)  # [T, N, W]
        value = (direction * self.start(x)).sum(-1, keepdim=True) + self.value_net(x)
        squares = (direction.unsqueeze(-1) * direction.unsqueeze(-2)).flatten(-2)
        added, weighted = class_sums(torch.cat((squares, direction * value), dim=-1), y, mask, num_classes)[0].split(
            (squares.shape[-1], self.num_weights), dim=-1
        )
        factor = lower_triangular(self.log_diagonal, self.below)
        before = factor @ factor.mT
        precision = before + added.unflatten(-1, before.shape)
        evidence = before @ self.prior_loc + weighted
        loc = torch.cholesky_solve(evidence.unsqueeze(-1), cholesky(precision)).squeeze(-1)
        return loc, precision
