"""Parts of encoders and decoders: small fully connected networks, averages over points and a relation network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def relu_network(sizes: Sequence[int], bias: bool = True) -> nn.Sequential:
    """Build linear layers of the given sizes with ReLU in between, with Glorot-uniform weights and zero biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.xavier_uniform_(linear.weight)
        if bias:
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def zero_at_start(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    """Build a network Linear-ELU-Linear-ELU-Linear whose output is 0 before training, for a learned correction."""
    last = nn.Linear(num_hidden, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    hidden = nn.Linear(num_hidden, num_hidden)
    return nn.Sequential(nn.Linear(num_inputs, num_hidden), nn.ELU(), hidden, nn.ELU(), last)


def positive(raw: Tensor, start: float) -> Tensor:
    """Compute a positive scale softplus(raw + constant) + 1e-6 from a network output; `start` + 1e-6 at raw = 0."""
    return functional.softplus(raw + math.log(math.expm1(start))) + 1e-6


def half_square(network: nn.Module) -> Tensor:
    """Compute half the sum of squares of all weight matrices of a network, without biases."""
    return 0.5 * torch.stack([weight.square().sum() for weight in network.parameters() if weight.dim() > 1]).sum()


def mean_of_points(values: Tensor, mask: Tensor) -> Tensor:
    """Average values [..., N, H] of N points over the unmasked points (mask [..., N]); 0 if all are masked."""
    kept = mask.unsqueeze(-1).to(values.dtype)
    return (values * kept).sum(-2) / kept.sum(-2).clamp(min=1)


def mean_relation(relation: nn.Module, codes: Tensor, mask: Tensor) -> Tensor:
    """Compute mean_j g(h_i, h_j) of every point i, for a relation network g. The mean is over unmasked points j.

    Args:
        relation: the network g, from two concatenated codes [..., 2 Z] to H values.
        codes: [T, N, Z], the codes h of N points of T tasks.
        mask: [T, N], False for points that are left out.

    Returns:
        Tensor [T, N, H].
    """
    first, second = codes.unsqueeze(2).expand(-1, -1, codes.shape[1], -1), codes.unsqueeze(1)
    pairs = torch.cat((first, second.expand_as(first)), dim=-1)
    return mean_of_points(relation(pairs), mask.unsqueeze(1))
