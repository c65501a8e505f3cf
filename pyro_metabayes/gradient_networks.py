"""Networks that make up what nobody can compute without labels: the gradient of a loss with respect to the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_metabayes.task_norm import TaskNorm


LEAST_SHARE = 1e-3  # of the queries that a class is taken to have: the logarithm of nothing tells nothing


def log_marginal(logits: Tensor, mask: Tensor) -> Tensor:
    """log (1/Q) sum_i softmax(logits_i) [..., T, C] over the points of the mask [T, Q]; logits [..., T, Q, C]."""
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    return ((logits.softmax(-1) * mask.unsqueeze(-1)).sum(-2) / count).clamp(min=LEAST_SHARE).log()


class OrderedNet(nn.Module):
    """xi as published: Linear-ReLU-norm, twice, then Linear, of width 8 C, on the C logits in class order."""

    pure = True  # a function of tensors: torch.compile may have it

    def __init__(self, num_classes: int, normalise: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        width = 8 * num_classes
        self.inputs = nn.Linear(num_classes, width)
        self.hidden = nn.Linear(width, width)
        self.outputs = nn.Linear(width, num_classes)
        self.norms = nn.ModuleList([TaskNorm(width, over_batch=over_batch) for _ in range(2)] if normalise else [])

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Synthetic d loss / d logits [..., T, Q, C] from the logits; mask [T, Q]."""
        x = logits
        for i, layer in enumerate((self.inputs, self.hidden)):
            x = layer(x).relu()
            x = self.norms[i](x, mask.unsqueeze(-1)) if self.norms else x
        return self.outputs(x)


class PooledLinear(nn.Linear):
    """A linear map of each class's channels plus one of their mean over classes: permutation-equivariant."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(2 * num_inputs, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat((x, x.mean(-2, keepdim=True).expand_as(x)), dim=-1))


class EquivariantNet(nn.Module):
    """xi that commutes with any reordering of the classes, and so serves any number of them.

    The same three layers, each acting on every class alike and on the mean over classes; channels
    are normalised over the queries and classes of a task together. marginal_aware: a third channel is
    log (1/Q) sum_i softmax(logits_i), how the queries share out among the classes as far as the logits tell.
    """

    pure = True

    def __init__(
        self, width: int = 32, normalise: bool = True, over_batch: bool = False, marginal_aware: bool = False
    ) -> None:
        super().__init__()
        self.marginal_aware = marginal_aware
        self.inputs = PooledLinear(2 + marginal_aware, width)
        self.hidden = PooledLinear(width, width)
        self.outputs = PooledLinear(width, 1)
        self.norms = nn.ModuleList([TaskNorm(width, over_batch=over_batch) for _ in range(2)] if normalise else [])

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """As OrderedNet.forward, for any C."""
        num_classes = logits.shape[-1]
        points = mask.repeat_interleave(num_classes, dim=-1).unsqueeze(-1)  # [T, Q * C, 1]
        channels = [logits, logits.softmax(-1)]
        if self.marginal_aware:
            channels.append(log_marginal(logits, mask).unsqueeze(-2).expand_as(logits))
        x = torch.stack(channels, dim=-1)
        for i, layer in enumerate((self.inputs, self.hidden)):
            x = layer(x).relu()  # [..., T, Q, C, H]
            if self.norms:
                x = self.norms[i](x.flatten(-3, -2), points).unflatten(-2, (-1, num_classes))
        return self.outputs(x).squeeze(-1)
