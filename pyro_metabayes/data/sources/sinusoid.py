"""Sinusoids of random amplitude and phase, the regression tasks of the MAML paper."""

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


@dataclass(frozen=True)
class Sinusoid:
    """Simulator of regression tasks.

        y_i = A sin(x_i - b) + noise e_i,

    where A ~ U[0.1, 5] and b ~ U[0, pi] are drawn per task, x_i ~ U[-5, 5] and e_i ~ N(0, 1) per point i. The splits
    differ only in their random numbers. (Finn, Abbeel and Levine 2017, section 5.1, without noise.)

    Args:
        noise: standard deviation of the noise.
    """

    noise: float = 0.0

    num_targets = 1
    input_shape = (1,)

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"expected a finite data.noise >= 0, got {self.noise}; change data.noise")

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks, each with task.shot support points and task.query queries."""
        check_regression(split, shape)

        def draw(generator: Generator) -> Episodes:
            def uniform(low: float, high: float, num_points: int) -> Tensor:
                return low + (high - low) * torch.rand(BLOCK, num_points, 1, generator=generator)

            amplitude, phase = uniform(0.1, 5.0, 1), uniform(0.0, math.pi, 1)
            num_points = shape.shot + shape.query
            x = uniform(-5.0, 5.0, num_points)
            y = amplitude * torch.sin(x - phase)
            if self.noise:
                y = y + self.noise * torch.randn(BLOCK, num_points, 1, generator=generator)
            return Episodes(
                support_x=x[:, : shape.shot],
                support_y=y[:, : shape.shot],
                query_x=x[:, shape.shot :],
                query_y=y[:, shape.shot :],
            )

        return draw
