"""Lines whose slope depends only on the inputs, so that tasks can be solved without labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Generator

from pyro_metabayes.data.stream import check_regression
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class SpinningLines:
    """Simulator of lines without noise. The inputs x_i of a task predict the slope w.

        y_i = w x_i,    w = mean_i x_i + e,    x_i ~ N(loc, scale^2),    e ~ N(slope_loc, slope_scale^2).

    With n query points and without support points (task.shot=0), the slope has the distributions

        p(w) = N(loc + slope_loc, scale^2 / n + slope_scale^2),    p(w | x) = N(mean(x) + slope_loc, slope_scale^2).

    The mutual information of slope and inputs in nats (0.7085 at n = 32 and the defaults) is

        I(w; x) = log(1 + scale^2 / (n slope_scale^2)) / 2.

    Source: the toy problem of Hu et al. 2020, appendix, which does not state all settings.

    Args:
        loc: mean of the inputs.
        scale: standard deviation of the inputs.
        slope_loc: mean of e, i.e. of the slope minus the mean input.
        slope_scale: standard deviation of e, i.e. of the slope given the inputs.
    """

    loc: float = 0.0
    scale: float = 1.0
    slope_loc: float = 1.0
    slope_scale: float = 0.1

    num_targets = 1
    input_shape = (1,)

    def __post_init__(self) -> None:
        settings = (self.loc, self.scale, self.slope_loc, self.slope_scale)
        if not all(map(math.isfinite, settings)) or self.scale <= 0 or self.slope_scale <= 0:
            raise UsageError(f"expected finite settings, scale > 0 and slope_scale > 0, got {self}; change data.*")

    def truth(self, observed: Observed) -> TorchDistribution:
        """Return the exact posterior p(w | x_query) of the slope w in each of T tasks: batch [T], event [1, 1]."""
        share = observed.query_mask / observed.query_mask.sum(-1, keepdim=True)
        mean = (observed.query_x.squeeze(-1) * share).sum(-1)
        return Normal(mean.view(-1, 1, 1) + self.slope_loc, self.slope_scale).to_event(2)

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks, each with task.query queries and no support set."""
        check_regression(split, shape)
        if shape.shot:
            raise UsageError(f"expected task.shot=0 for tasks without labels, got {shape.shot}; set task.shot=0")

        def draw(generator: Generator) -> Episodes:
            x = self.loc + self.scale * torch.randn(BLOCK, shape.query, 1, generator=generator)
            noise = torch.randn(BLOCK, 1, 1, generator=generator)
            w = x.mean(1, keepdim=True) + self.slope_loc + self.slope_scale * noise
            return Episodes(support_x=x[:, :0], support_y=x[:, :0], query_x=x, query_y=w * x)

        return draw
