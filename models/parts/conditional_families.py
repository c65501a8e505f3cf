"""Conditional priors that are not diagonal Gaussians: a Gaussian with low-rank covariance, and a coupling flow.

With `guide=savi` the posterior has the same family and the same encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal, Normal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import (
    AffineTransform,
    ConditionalAffineCoupling,
    Permute,
    conditional_affine_coupling,
)
from torch import Tensor, nn

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.cholesky import WithoutWaiting
from pyro_metabayes.models.parts.set_encoder import elu_network
from pyro_metabayes.models.priors import Conditional


class LowRank(Conditional):
    """Conditional Gaussian prior with low-rank covariance over the weights w_c of class c:

        p_psi(w_c | support points of class c) = N(loc, S (I + F F^T) S),    S = diag(scale).

    loc and scale are those of `Conditional`. A network computes the matrix F [W, rank] from loc, for W weights per
    class. F is small and random before training, because the gradient vanishes at F = 0.

    Args:
        rank: number of columns of F.
    The other arguments are those of `Conditional`.
    """

    def __init__(
        self,
        num_features: int,
        num_weights: int,
        num_targets: int = 0,
        num_hidden: int = 256,
        scale: float = 0.135,
        count_aware: bool = False,
        rank: int = 4,
    ) -> None:
        super().__init__(num_features, num_weights, num_targets, num_hidden, scale, count_aware)
        if rank < 1:
            raise UsageError(f"expected prior.rank >= 1, got {rank}; take prior=conditional for independent weights")
        self.factor_net = elu_network(num_weights, num_hidden, num_weights * rank)

    def family(self, loc: Tensor, spread: Tensor) -> TorchDistribution:
        factor = self.factor_net(loc).unflatten(-1, (loc.shape[-1], -1))
        with WithoutWaiting():
            return LowRankMultivariateNormal(loc, spread.unsqueeze(-1) * factor, spread.square()).to_event(1)


class CouplingFlow(Conditional):
    """Conditional coupling flow over the weights w_c of class c.

        w_c = loc + scale f(z_c),    z_c ~ N(0, I)

    loc and scale are those of `Conditional`. f is a stack of affine coupling layers, conditioned on loc and log scale.
    Each layer scales and shifts one half of z by networks of the other half, and reverses the order of the entries.
    Before training w_c ~ N(loc, diag(scale^2)). Mean, variance and KL have no closed form. (RealNVP: Dinh et al., ICLR
    2017, arXiv 1605.08803.)

    Args:
        num_layers: number of coupling layers; 2 or more transform every weight.
    The other arguments are those of `Conditional`, with num_hidden > 0.
    """

    def __init__(
        self,
        num_features: int,
        num_weights: int,
        num_targets: int = 0,
        num_hidden: int = 256,
        scale: float = 0.135,
        count_aware: bool = False,
        num_layers: int = 2,
    ) -> None:
        super().__init__(num_features, num_weights, num_targets, num_hidden, scale, count_aware)
        if num_layers < 1 or num_hidden < 1 or num_weights < 2:
            raise UsageError(
                "expected prior.num_layers >= 1, prior.num_hidden >= 1 and at least 2 weights per class, got "
                f"num_layers={num_layers}, num_hidden={num_hidden} and {num_weights} weights; set prior=conditional"
            )
        self.layers = nn.ModuleList([_coupling(num_weights, num_hidden) for _ in range(num_layers)])

    def family(self, loc: Tensor, spread: Tensor) -> TorchDistribution:
        context = torch.cat((loc, spread.log()), dim=-1)
        reverse = Permute(torch.arange(loc.shape[-1] - 1, -1, -1, device=loc.device))
        couplings: Iterable[Any] = self.layers  # torch types the items of a ModuleList as any module
        transforms = [step for layer in couplings for step in (layer.condition(context), reverse)]
        standard = Normal(torch.zeros_like(loc), 1.0).to_event(1)
        affine = AffineTransform(loc, spread, event_dim=1)
        return TransformedDistribution(standard, [*transforms, affine]).to_event(1)


def _coupling(num_weights: int, num_hidden: int) -> ConditionalAffineCoupling:
    """Construct an affine coupling layer that is the identity before training."""
    layer = conditional_affine_coupling(num_weights, 2 * num_weights, hidden_dims=[num_hidden])
    for parameter in layer.nn.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layer
