"""Set encoders: from the labelled points of a class to a distribution over its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.episodes import class_sums


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
