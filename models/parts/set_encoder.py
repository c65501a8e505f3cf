"""Set encoders, which compute a distribution over the weights of a class from the labelled points of the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.episodes import class_sums
from pyro_metabayes.inference.cholesky import cholesky


def elu_network(num_inputs: int, num_hidden: int, num_outputs: int, start: float | None = None) -> nn.Module:
    """Construct a network Dense-ELU-Dense-ELU-Dense, the block of VERSA.

    Args:
        num_inputs: input width.
        num_hidden: width of both hidden layers; 0 for one linear map.
        num_outputs: output width.
        start: constant output before training; None: random initial weights.
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
    """Construct a Cholesky factor L [W, W] from unconstrained parameters.

    Args:
        log_diagonal: logarithm of the diagonal of L, W numbers [W].
        below: entries L_ij / L_ii below the diagonal [W, W]; other entries are ignored.
    """
    unit = below.tril(-1) + torch.eye(len(below), dtype=below.dtype, device=below.device)
    return log_diagonal.exp().unsqueeze(-1) * unit


class SetEncoder(nn.Module):
    """Base class of set encoders, which compute loc and scale of the weights of each class from labelled points.

    `forward` takes points x [T, N, D] (N points with D features of T tasks), labels [T, N], a mask [T, N] and the
    number of classes C. The results are loc and scale [T, C, W].

    Args:
        num_weights: W, the number of weights per class.
        residual: whether loc is the mean of the features of the class before training, possibly shrunk towards 0. This
            suits weights in feature space. Weights without a feature, such as the bias of a head, are then 0. If False,
            all of loc is 0.
    """

    pure = True  # forward is a function of tensors without Pyro effects, so torch.compile can compile it

    def __init__(self, num_weights: int, residual: bool) -> None:
        super().__init__()
        self.num_weights, self.residual = num_weights, residual

    def start(self, x: Tensor) -> Tensor:
        """Return the value of loc before training for features x; the output of a network is added to it."""
        if self.residual:
            return functional.pad(x, (0, self.num_weights - x.shape[-1]))
        return x.new_zeros(*x.shape[:-1], self.num_weights)


class MeanPooled(SetEncoder):
    """Set encoder with mean pooling: loc_c = m_c + f(m_c), log scale_c = g(m_c).

    m_c is the mean of the points of class c. f and g are networks. This is the pooling of VERSA and SAMOVAR. The result
    does not depend on the number of points. So an encoder shared by prior and posterior makes both biased
    (docs/collapse.md).

    Args:
        num_features: number of features of a point.
        num_weights: number of weights per class.
        num_hidden: width of the networks; 0 for linear maps.
        scale: standard deviation of every weight before training.
        residual: whether loc equals m_c before training; otherwise loc is 0.
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
    """Set encoder that sums natural parameters over the points x_i of class c:

        precision_c = a + sum_i b(x_i),    loc_c = (a m + sum_i b(x_i) (x_i + f(x_i))) / precision_c.

    m and log a are parameters. f and log b are networks. The scale decreases with the number of points. A class without
    points has N(m, 1/a). Before training, the scale of a class of one point is `scale`. The prior precision a is then a
    fifth of the precision of this class.

    With constant b and linear x_i + f(x_i), the encoder can represent the exact conditional prior and the exact
    posterior of the mean of a Gaussian with known noise. The arguments are those of `MeanPooled`.
    """

    def __init__(self, num_features: int, num_weights: int, num_hidden: int, scale: float, residual: bool) -> None:
        super().__init__(num_weights, residual)
        # exp, not softplus: precisions in feature space are in the hundreds, which softplus reaches only slowly.
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
    """Set encoder with full covariances: each point of class c is a noisy linear observation of the weights w_c.

    The prior is N(m, A^-1), with learned m and A = L L^T. Point i is an observation u_i = b_i . w_c + e with e ~ N(0,
    1). So

        precision_c = A + sum_i b_i b_i^T,    loc_c = precision_c^-1 (A m + sum_i b_i u_i).

    Networks b and f give b_i = b(x_i) with W entries and u_i = b_i . x_i + f(x_i). If not `residual`, u_i = f(x_i). A
    class without points has N(m, A^-1). `forward` returns loc [T, C, W] and precision [T, C, W, W] for T tasks and C
    classes.

    For a linear regression with known noise, linear maps (num_hidden=0) can represent both the exact prior and the
    exact posterior: b_i = x_i / noise, u_i = y_i / noise.

    Recognition potentials conjugate to the prior: Johnson et al. 2016, arXiv 1603.06277. Aggregation as conditioning:
    Volpp et al. 2021, whose method is `CountAware`. The arguments are those of `MeanPooled`.
    """

    def __init__(self, num_features: int, num_weights: int, num_hidden: int, scale: float, residual: bool) -> None:
        super().__init__(num_weights, residual)
        self.value_net = elu_network(num_features, num_hidden, 1, start=0.0)
        # Training rarely reverses the sign of b_i. So a linear b_i starts at 0.5 x_i / scale in a regression.
        self.direction_net = elu_network(num_features, num_hidden, num_weights, start=0.5 / scale)
        if isinstance(self.direction_net, nn.Linear) and not residual:
            nn.init.zeros_(self.direction_net.bias)
            with torch.no_grad():
                self.direction_net.weight.copy_(0.5 / scale * torch.eye(num_weights, num_features))
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
