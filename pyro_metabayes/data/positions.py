"""Draws random positions without replacement, for a whole block of tasks at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

# Above this number of random keys, positions are sampled one after the other instead of by a partial sort. Another
# value would change the tasks of a seed.
MOST_KEYS = 2**21


def random_positions(sizes: Tensor, number: int, largest: int, generator: Generator) -> Tensor:
    """Draw positions [B, C, number] in C classes of B tasks, without replacement and in random order.

    For a class with fewer than `number` inputs, all positions of the class come first. The entries after them are
    invalid and must not be used.

    Args:
        sizes: [B, C], number of inputs of each class.
        number: number of positions per class.
        largest: number of inputs of the largest class of the data set. It fixes how many random numbers are drawn.
        generator: random generator.
    """
    if sizes.numel() * largest > MOST_KEYS:
        return sequential_positions(sizes, number, generator)
    keys = torch.rand(*sizes.shape, largest, generator=generator, dtype=torch.float64)
    if int(sizes.min()) < largest:
        keys.masked_fill_(torch.arange(largest) >= sizes.unsqueeze(-1), -1.0)
    return _places_of_largest(keys, number)


def sequential_positions(sizes: Tensor, number: int, generator: Generator) -> Tensor:
    """Draw positions like `random_positions`, at a cost that does not depend on the sizes of the classes.

    For j = size - number, ..., size - 1: draw a position from 0, ..., j. If this position was drawn before, use j.
    All subsets are then equally likely (Bentley and Floyd 1987, "A sample of brilliance"). At the end the positions are
    shuffled, since the order of these draws is not uniform.

    The arguments and the result are those of `random_positions`, without the argument `largest`.
    """
    positions = torch.empty(*sizes.shape, number, dtype=torch.int64)
    available = sizes.clamp(max=number)
    for i in range(number):
        last = sizes - available + i
        candidate = (torch.rand(sizes.shape, generator=generator, dtype=torch.float64) * (last + 1)).long()
        duplicate = (positions[..., :i] == candidate.unsqueeze(-1)).any(-1)
        positions[..., i] = torch.where(duplicate | (last >= sizes), last, candidate)
    order = torch.rand(positions.shape, generator=generator, dtype=torch.float64)
    return positions.gather(-1, order.masked_fill(positions >= sizes.unsqueeze(-1), 2.0).argsort(-1))


def _places_of_largest(keys: Tensor, number: int) -> Tensor:
    """Return keys.topk(number).indices for keys without ties, in half the time of topk."""
    values = keys.numpy()
    if number == values.shape[-1]:
        return keys.argsort(-1, descending=True)
    largest = np.argpartition(values, -number, axis=-1)[..., -number:]
    order = np.take_along_axis(values, largest, axis=-1).argsort(-1)[..., ::-1]
    return torch.from_numpy(np.take_along_axis(largest, order, axis=-1))
