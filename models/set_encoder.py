"""Set encoders: from the labelled points of a class to a distribution over its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.episodes import class_sums


def elu_network(num_inputs: int, num_hidden: int, num_outputs: int, start: float | None = None) -> nn.Sequential:
    """Dense-ELU-Dense-ELU-Dense, VERSA's block; with `start` its output begins as that constant."""
    last = nn.Linear(num_hidden, num_outputs)
    if start is not None:
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, start)
    hidden = nn.Linear(num_hidden, num_hidden)
    return nn.Sequential(nn.Linear(num_inputs, num_hidden), nn.ELU(), hidden, nn.ELU(), last)


def widen(x: Tensor, num_weights: int) -> Tensor:
    """Features [..., D] with zeros appended for the weights that have no feature (the bias)."""
    return functional.pad(x, (0, num_weights - x.shape[-1]))


class MeanPooled(nn.Module):
    """loc_c = m_c + f(m_c), log scale_c = g(m_c), with m_c the mean of class c.

    As VERSA and SAMOVAR pool: it cannot see how many points stand behind the mean, so a shared
    prior and posterior are biased (P6 of the collapse study). f and g are VERSA's blocks.
    """

    pure = True  # a function of tensors: torch.compile may have it

    def __init__(self, num_features: int, num_weights: int, num_hidden: int) -> None:
        super().__init__()
        self.loc_net = elu_network(num_features, num_hidden, num_weights, start=0.0)
        self.log_scale_net = elu_network(num_features, num_hidden, num_weights, start=-2.0)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """loc and scale [T, C, W] from points x [T, N, D], labels and mask [T, N]."""
        sums, counts = class_sums(x, y, mask, num_classes)
        mean = sums / counts.clamp(min=1)
        log_scale = self.log_scale_net(mean)
        loc = self.loc_net(mean)
        return widen(mean, loc.shape[-1]) + loc, log_scale.clamp(-10, 4).exp()


class CountAware(nn.Module):
    """precision_c = a + sum_i b(x_i), loc_c = (a m + sum_i b(x_i) (x_i + f(x_i))) / precision_c.

    Natural parameters add up over points, so the scale shrinks as evidence comes in, and an empty
    class gets N(m, 1/a). For a Gaussian mean with known noise (b constant, f = 0) it is the exact
    conditional prior and posterior at once. a and b are softplus of a parameter and of a network.
    """

    pure = True

    def __init__(self, num_features: int, num_weights: int, num_hidden: int) -> None:
        super().__init__()
        self.value_net = elu_network(num_features, num_hidden, num_weights, start=0.0)
        self.precision_net = elu_network(num_features, num_hidden, num_weights, start=40.0)
        self.prior_loc = nn.Parameter(torch.zeros(num_weights))
        self.prior_precision = nn.Parameter(torch.full((num_weights,), 10.0))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """loc and scale [T, C, W] from points x [T, N, D], labels and mask [T, N]."""
        values = self.value_net(x)
        values = widen(x, values.shape[-1]) + values
        precisions = functional.softplus(self.precision_net(x))
        evidence = torch.cat((precisions, precisions * values), dim=-1)
        added, weighted = class_sums(evidence, y, mask, num_classes)[0].chunk(2, dim=-1)
        before = functional.softplus(self.prior_precision)
        precision = before + added
        return (before * self.prior_loc + weighted) / precision, precision.rsqrt()
