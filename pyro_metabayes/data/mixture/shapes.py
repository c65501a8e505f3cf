"""Random shapes of tasks: way, shots, number of queries and class marginal of the queries."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

Value = TypeVar("Value", int, float)

WAYS = (2, 3, 4, 5, 5, 5, 5, 6, 8, 10, 10, 12, 15, 20, 20, 30, 50)
SHOTS = (1, 1, 1, 1, 2, 3, 4, 5, 5, 10, 20)
QUERIES = (15.0, 15.0, 15.0, 10.0, 8.0, 3.0, 1.0, 25.0)  # mean numbers of queries per class
CONCENTRATIONS = (0.5, 1.0, 2.0, 2.0, 5.0, 50.0)
BALANCED, ABSENT, FEW = 0.4, 0.2, 0.08  # probabilities: balanced queries, a class without queries, 1 to 3 queries
MOST_PAIRS = 6000  # largest number of pairs of a query and a class, per task
MOST_POINTS = 500  # largest number of support and query points per task


class Shape(NamedTuple):
    """Shape of tasks that are drawn together: way, shots per class and queries per task."""

    way: int
    shot: int
    query: int


def random_shape(generator: Generator, most_pairs: int = MOST_PAIRS) -> Shape:
    """Draw a random task shape. A larger way has fewer queries per class, which bounds the cost of a training step.

    Args:
        generator: random generator.
        most_pairs: upper bound on the number of queries times the way.
    """
    way = one_of(WAYS, generator)
    shot = min(one_of(SHOTS, generator), max(1, MOST_POINTS // 2 // way))
    query = int(one_of(QUERIES, generator) * way)
    if float(torch.rand((), generator=generator)) < FEW:
        query = int(torch.randint(1, 4, (), generator=generator))
    return Shape(way, shot, max(1, min(query, most_pairs // way, MOST_POINTS - way * shot)))


def query_labels(shape: Shape, tasks: int, generator: Generator) -> Tensor:
    """Draw the labels [T, Q] of Q queries in each of T tasks, sorted by class.

    The classes are balanced, or have frequencies from a Dirichlet distribution; one class may then be absent.
    """
    way, number = shape.way, shape.query
    draw = torch.rand(2, generator=generator)
    if draw[0] < BALANCED and number >= way:
        return torch.arange(number).remainder(way).sort().values.expand(tasks, -1)
    concentration = torch.full((tasks, way), one_of(CONCENTRATIONS, generator))
    marginal = torch._sample_dirichlet(concentration, generator)
    if draw[1] < ABSENT and way > 2:
        marginal[:, int(torch.randint(way, (), generator=generator))] = 0.0
    return torch.multinomial(marginal + 1e-9, number, replacement=True, generator=generator).sort(1).values


def support_mask(shape: Shape, tasks: int, generator: Generator) -> Tensor:
    """Draw a mask [T, S] of S support points in T tasks; true means that a point is used.

    The mask is true for all points, or for a random part of the points with at least one point per class.
    """
    mask = torch.ones(tasks, shape.way * shape.shot, dtype=torch.bool)
    if shape.shot == 1 or float(torch.rand((), generator=generator)) < 0.7:
        return mask
    share = 0.3 + 0.7 * torch.rand(tasks, shape.way, generator=generator).repeat_interleave(shape.shot, 1)
    mask = torch.rand(mask.shape, generator=generator) < share
    mask[:, :: shape.shot] = True
    return mask


def one_of(values: tuple[Value, ...], generator: Generator) -> Value:
    """Return one of the values, each with the same probability."""
    return values[integer(len(values), generator)]


def integer(number: int, generator: Generator) -> int:
    """Return one of 0, ..., number - 1, each with the same probability."""
    return int(torch.randint(number, (), generator=generator))


def chance(probability: float, generator: Generator) -> bool:
    """Return true with the given probability."""
    return bool(torch.rand((), generator=generator) < probability)
