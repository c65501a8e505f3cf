"""Random changes of training tasks: transformed features, wrong support labels, ambiguous points and outliers."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import relu

from pyro_metabayes.data.mixture.shapes import Shape, chance, one_of
from pyro_metabayes.data.mixture.simulator import FeatureSimulator
from pyro_metabayes.episodes import Episodes

PROJECTIONS = (16, 32, 64, 128, 256)
MOST_AMBIGUOUS = 0.25  # largest share of ambiguous points in a task


def transformed(x: Tensor, simulator: FeatureSimulator, generator: Generator) -> Tensor:
    """Transform features x at random.

    Noise is added with probability 1/2. Then x is projected, replaced by the square root of x, standardised per column,
    or left unchanged.
    """
    size = x.var((0, 1)).mean().sqrt() + 1e-6
    if chance(0.5, generator):
        level = (-2.3 + 2.7 * torch.rand(len(x), 1, 1, generator=generator)).exp()  # 0.1 to 1.5
        x = x + level * size * torch.randn(x.shape, generator=generator)
    kind = float(torch.rand((), generator=generator))
    if kind < 0.25:
        x = x @ simulator.projection(x.shape[-1], one_of(PROJECTIONS, generator))
        return relu(x) if chance(0.4, generator) else x
    if kind < 0.4 and x.min() >= 0:
        return x.sqrt()
    if kind < 0.55:
        return (x - x.mean((0, 1))) / (x.std((0, 1)) + 0.1 * size)
    return x


def with_errors(labels: Tensor, shape: Shape, generator: Generator) -> Tensor:
    """Replace up to a fifth of the support labels by random labels. The first label of each class is kept."""
    wrong = torch.rand(labels.shape, generator=generator) < 0.2 * torch.rand((), generator=generator)
    wrong[:, :: shape.shot] = False
    return torch.where(wrong, torch.randint(shape.way, labels.shape, generator=generator), labels)


def mix_points(episodes: Episodes, generator: Generator) -> None:
    """Mix up to a quarter of the points of each task with other points of the task, in place.

    Such points are ambiguous, like a photograph that shows two things. The weight of the other point is 0.3 to 1. With
    a weight near 1, a point becomes a copy of the other point, which may belong to another class.
    """
    x = torch.cat((episodes.support_x, episodes.query_x), 1)
    tasks, number = x.shape[:2]
    share = MOST_AMBIGUOUS * torch.rand(tasks, 1, 1, generator=generator).square()
    weight = 0.3 + 0.7 * torch.rand(tasks, number, 1, generator=generator)
    weight = weight * (torch.rand(tasks, number, 1, generator=generator) < share)
    other = torch.rand(tasks, number, generator=generator).argsort(1).unsqueeze(-1).expand_as(x)
    x = torch.lerp(x, x.gather(1, other), weight)
    episodes.support_x, episodes.query_x = x.split((episodes.support_x.shape[1], episodes.query_x.shape[1]), 1)


def add_outliers(x: Tensor, generator: Generator) -> None:
    """Add noise of the size of the features to a twentieth of the points of x, in place."""
    at = torch.rand(*x.shape[:2], 1, generator=generator) < 0.05
    x += at * x.std() * torch.randn(x.shape, generator=generator)
