"""A network that assigns the queries of a task to classes, for any number of classes, shots and queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

OPEN = 2.0  # logit of the weight of a query before training


Affine = tuple[Tensor, Tensor]  # factor and additive term of each channel


class Modulation(nn.Module):
    """Network that computes a factor and a term for each hidden channel from the statistics of a task (FiLM).

    The channel is multiplied by the factor, and the term is added. Before training, factors are 1 and terms are 0.
    (Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.)

    Args:
        num_context: number of statistics of a task.
        width: number of channels.
    """

    def __init__(self, num_context: int, width: int) -> None:
        super().__init__()
        self.network = zero_network(num_context, 2 * width)

    def forward(self, context: Tensor) -> Affine:
        """Compute factor and term, each [T, 1, 1, width], from task statistics [T, num_context]."""
        factor, term = self.network(context)[:, None, None].chunk(2, -1)
        return 1 + factor, term


def zero_network(num_inputs: int, num_outputs: int, width: int = 32) -> nn.Sequential:
    """Construct a network Linear-Tanh-Linear whose output is 0 before training."""
    last = nn.Linear(width, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_inputs, width), nn.Tanh(), last)


class AssignmentNetwork(nn.Module):
    """Network that computes a correction of the logit of each query and class, and a weight of each query.

    The inputs are channels (numbers) of each pair of a query and a class. Two hidden layers map the channels of a pair,
    with the same map for all pairs. `Modulation` by task statistics follows each map.

    The first layer also receives the means of the input channels over classes. The second layer also receives two
    differences: hidden channels minus their mean over classes, and hidden channels minus their mean over queries.

    A permutation of the classes permutes the corrections, and leaves the weights unchanged. A permutation of the
    queries permutes corrections and weights. Before training, the corrections are 0.

    Args:
        num_channels: number of input channels.
        num_context: number of statistics of a task.
        width: number of hidden channels.
    """

    def __init__(self, num_channels: int, num_context: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(num_channels, width)
        self.of_mean = nn.Linear(num_channels, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.between_classes, self.between_queries = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.modulations = nn.ModuleList(Modulation(num_context, width) for _ in range(2))
        self.term, self.weight = nn.Linear(width, 1), nn.Linear(width, 1)
        nn.init.zeros_(self.term.weight)
        nn.init.zeros_(self.term.bias)
        nn.init.zeros_(self.weight.weight)
        nn.init.constant_(self.weight.bias, OPEN)

    def modulated_by(self, context: Tensor) -> list[Affine]:
        """Compute the modulations of both layers from task statistics [T, num_context], once for all steps."""
        return [modulation(context) for modulation in self.modulations]

    def forward(self, channels: Tensor, modulations: list[Affine], shares: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the corrections of the logits, and the weights of the queries.

        Args:
            channels: [T, Q, C, num_channels], inputs for Q queries and C classes of T tasks.
            modulations: the result of `modulated_by`.
            shares: [T, Q], weight of each query in a mean over the queries, 0 for masked queries.

        Returns:
            Corrections [T, Q, C], and weights [T, Q, 1] in (0, 1).
        """
        first = self.inputs(channels) + self.of_mean(channels.mean(2, keepdim=True))
        (factor, term), (next_factor, next_term) = modulations
        h = functional.silu(torch.addcmul(term, first, factor))
        of_class = (shares.unsqueeze(1) @ h.flatten(2)).unflatten(2, h.shape[2:])  # [T, 1, C, H], over the queries
        of_query = h.mean(2, keepdim=True)
        second = functional.linear(h, self.hidden.weight + self.between_classes.weight + self.between_queries.weight)
        second = second + self.hidden.bias - self.between_classes(of_query) - self.between_queries(of_class)
        h = functional.silu(torch.addcmul(next_term, second, next_factor))
        return self.term(h).squeeze(-1), self.weight(h.mean(2)).sigmoid()
