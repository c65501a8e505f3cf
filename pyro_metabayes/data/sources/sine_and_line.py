"""Regression tasks that are sines or straight lines. A few points do not tell which of the two a task is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.stream import check_regression
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

FAMILIES = ("sine", "line")


@dataclass(frozen=True)
class Functions:
    """True functions of T tasks. A call with N inputs per task, x [T, N, 1], returns y [T, N, 1] without noise."""

    family: Tensor  # [T], index in FAMILIES
    amplitude: Tensor  # [T, 1, 1], like the next three; the parameters of both families are drawn for every task
    phase: Tensor
    slope: Tensor
    intercept: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        sine = self.amplitude * torch.sin(x - self.phase)
        return torch.where(self.family.view(-1, 1, 1) == 0, sine, self.slope * x + self.intercept)


@dataclass(frozen=True)
class SineAndLine:
    """Simulator of regression tasks: sines or lines, each with probability 1/2.

        y = A sin(x - phase) + e    or    y = slope x + intercept + e,

    with e ~ N(0, noise^2), x ~ U[-5, 5], A ~ U[0.1, 5], phase ~ U[0, pi], slope and intercept ~ U[-3, 3]. (Finn et al.
    2018; Rusu et al. 2019, figure 2.)

    Args:
        noise: standard deviation of the noise.
        fewest: if positive, the number of support points is drawn uniformly from `fewest` to task.shot, and the other
            points are masked. 0: every task has task.shot support points.
    """

    noise: float = 0.3
    fewest: int = 0

    num_targets = 1
    input_shape = (1,)

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf or self.fewest < 0:
            raise UsageError(f"expected a finite data.noise > 0 and data.fewest >= 0, got {self}; change data.*")

    def functions(self, generator: Generator) -> Functions:
        """Draw the true functions of a block of tasks.

        functions(generator_of(seed, split, b)) returns the functions of block b. They are not stored in the tasks,
        where a guide could read them.
        """

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(BLOCK, 1, 1, generator=generator)

        family = torch.randint(len(FAMILIES), (BLOCK,), generator=generator)
        return Functions(family, uniform(0.1, 5), uniform(0, math.pi), uniform(-3, 3), uniform(-3, 3))

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks, each with task.shot support points and task.query queries."""
        check_regression(split, shape)
        if self.fewest > shape.shot:
            raise UsageError(
                f"expected data.fewest <= task.shot, got data.fewest={self.fewest} and task.shot={shape.shot}; lower "
                "data.fewest"
            )

        def draw(generator: Generator) -> Episodes:
            function = self.functions(generator)
            x = 10 * torch.rand(BLOCK, shape.shot + shape.query, 1, generator=generator) - 5
            y = function(x) + self.noise * torch.randn(x.shape, generator=generator)
            return Episodes(
                support_x=x[:, : shape.shot],
                support_y=y[:, : shape.shot],
                query_x=x[:, shape.shot :],
                query_y=y[:, shape.shot :],
                support_mask=self._support_mask(shape.shot, generator),
            )

        return draw

    def _support_mask(self, shot: int, generator: Generator) -> Tensor:
        """Draw the mask [T, S] of S support points in each of T tasks; unmasked points come first."""
        counts = torch.full((BLOCK, 1), shot)
        if self.fewest:
            counts = torch.randint(self.fewest, shot + 1, (BLOCK, 1), generator=generator)
        return torch.arange(shot) < counts
