"""Small networks of encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def relu_network(sizes: Sequence[int], bias: bool = True) -> nn.Sequential:
    """Linear maps between layers of the given sizes, with ReLU between them; Glorot-uniform weights, zero biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.xavier_uniform_(linear.weight)
        if bias:
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def zero_at_start(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    """Dense-ELU-Dense-ELU-Dense, whose output is 0 before training; it is added to another map."""
    last = nn.Linear(num_hidden, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    hidden = nn.Linear(num_hidden, num_hidden)
    return nn.Sequential(nn.Linear(num_inputs, num_hidden), nn.ELU(), hidden, nn.ELU(), last)


def positive(raw: Tensor, start: float) -> Tensor:
    """softplus(raw + const) + 1e-6, a positive scale from the output of a network; about `start` for raw = 0."""
    return functional.softplus(raw + math.log(math.expm1(start))) + 1e-6


def half_square(network: nn.Module) -> Tensor:
    """Half the sum of squares of all matrices of a network, without biases."""
    return 0.5 * torch.stack([weight.square().sum() for weight in network.parameters() if weight.dim() > 1]).sum()
