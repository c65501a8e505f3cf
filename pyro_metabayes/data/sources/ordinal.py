"""Tasks of ordinal regression, simulated from the cumulative logit model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator

from pyro_metabayes.data.stream import check_regression
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class Ordinal:
    """Simulator of ordinal regression. A label is one of C levels 0, ..., C - 1.

        y_i = #{k : c_k < w . x_i + e_i},    w_d ~ N(loc, scale^2),    x_i ~ N(0, I),    e_i ~ Logistic(0, 1),

    where w are the weights of the task and i is a point. The splits differ only in their random numbers.

    Args:
        num_features: number of features D of an input.
        cutpoints: c_0 < ... < c_{C-2}, the same for all tasks.
        loc: prior mean of a slope.
        scale: prior standard deviation of a slope.
    """

    num_features: int = 2
    cutpoints: Sequence[float] = (-2.0, 0.0, 1.5)
    loc: float = 1.0
    scale: float = 1.0

    num_targets = 1  # a label is one number, since levels have an order

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.loc, self.scale, *self.cutpoints)))
        ordered = all(low < high for low, high in pairwise(self.cutpoints))
        if self.num_features < 1 or not self.cutpoints or not finite or not ordered or self.scale <= 0:
            raise UsageError(
                f"expected num_features >= 1, increasing cutpoints and a finite scale > 0, got {self}; change data.*"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    @property
    def context(self) -> Mapping[str, int]:
        """Number of levels C of a label, for the argument `num_levels` of models."""
        return {"num_levels": len(self.cutpoints) + 1}

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks, each with task.shot support points and task.query queries."""
        check_regression(split, shape)

        def draw(generator: Generator) -> Episodes:
            num_points, shot = shape.shot + shape.query, shape.shot
            w = self.loc + self.scale * torch.randn(BLOCK, self.num_features, 1, generator=generator)
            x = torch.randn(BLOCK, num_points, self.num_features, generator=generator)
            uniform = torch.rand(BLOCK, num_points, 1, generator=generator)
            y = torch.searchsorted(torch.tensor(self.cutpoints), x @ w + uniform.logit(1e-7)).to(x.dtype)
            return Episodes(
                support_x=x[:, :shot], support_y=y[:, :shot], query_x=x[:, shot:], query_y=y[:, shot:]
            )  # fmt: skip

        return draw
