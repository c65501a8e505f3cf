"""A network that assigns the queries of a task to its classes, for any number of classes, shots and queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

OPEN = 2.0  # initial logit of the weight of a query


Affine = tuple[Tensor, Tensor]  # factor and term of each channel


class Modulation(nn.Module):
    """Factor and term of each of `width` channels from the context [T, K] of a task; 1 and 0 before training.

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
    """

    def __init__(self, num_context: int, width: int) -> None:
        super().__init__()
        self.network = zero_network(num_context, 2 * width)

    def forward(self, context: Tensor) -> Affine:
        """Factor and term, each [T, 1, 1, H]."""
        factor, term = self.network(context)[:, None, None].chunk(2, -1)
        return 1 + factor, term


def zero_network(num_inputs: int, num_outputs: int, width: int = 32) -> nn.Sequential:
    """Linear-tanh-linear whose output is 0 before training."""
    last = nn.Linear(width, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_inputs, width), nn.Tanh(), last)


class AssignmentNetwork(nn.Module):
    """From channels of every pair of a query and a class to a term of its logit, and to a weight of the query.

    Two hidden layers, each a map of the channels of a pair that is shared by all pairs and modulated by the context of
    the task. The first layer also receives the mean over classes; the second one also the differences from the means
    over classes and over queries. The term is equivariant, and the weight invariant, under permutations of the classes;
    both are equivariant under permutations of the queries. Before training the term is 0.

    Args:
        num_channels: F.
        num_context: K.
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
        """The modulations of both layers, which are the same in every step; context [T, K]."""
        return [modulation(context) for modulation in self.modulations]

    def forward(self, channels: Tensor, modulations: list[Affine], shares: Tensor) -> tuple[Tensor, Tensor]:
        """Terms [T, Q, C] and weights [T, Q, 1] in (0, 1).

        Args:
            channels: [T, Q, C, F].
            modulations: those of `modulated_by`.
            shares: weight of each query in a mean over the queries [T, Q], 0 for masked ones.
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
