"""Simulated tasks of Bayesian linear regression with a known exact posterior."""

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
from pyro_metabayes.exact.conjugate import posterior_of_rows


@dataclass(frozen=True)
class LinearGaussian:
    """Simulator of Bayesian linear regression.

        w_kd ~ N(loc, scale^2),    y_ik ~ N(w_k . x_i, noise^2),    x_i ~ N(0, I), or x_i = 1 if `constant`,

    where k is an output, d a feature and i a point. The splits differ only in their random numbers.

    Args:
        num_features: number of features D.
        num_targets: number of outputs Y.
        loc: prior mean of a weight.
        scale: prior standard deviation of a weight.
        noise: standard deviation of the noise.
        constant: whether all features are 1. With one feature, w is then the mean of the labels.
    """

    num_features: int = 1
    num_targets: int = 1
    loc: float = 0.0
    scale: float = 1.0
    noise: float = 1.0
    constant: bool = False

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.loc, self.scale, self.noise)))
        if self.num_features < 1 or self.num_targets < 1 or not finite or self.scale <= 0 or self.noise <= 0:
            raise UsageError(
                f"expected num_features >= 1, num_targets >= 1, and finite scale > 0 and noise > 0, got {self}; change "
                "data.*"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    def truth(self, observed: Observed) -> TorchDistribution:
        """Return the exact posterior p(w | support) of T tasks: batch [T], event [Y, D] (outputs, features)."""
        shape = observed.num_tasks, self.num_targets, self.num_features
        prior = Normal(observed.query_x.new_tensor(self.loc), self.scale).expand(shape).to_event(2)
        points = observed.support_x, observed.support_y, observed.support_mask
        return posterior_of_rows(prior, *points, self.noise)

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """Return a function that draws a block of tasks, each with task.shot support points and task.query queries."""
        check_regression(split, shape)

        def draw(generator: Generator) -> Episodes:
            w = self.loc + self.scale * torch.randn(BLOCK, self.num_targets, self.num_features, generator=generator)
            num_points = shape.shot + shape.query
            x = torch.randn(BLOCK, num_points, self.num_features, generator=generator)
            x = torch.ones_like(x) if self.constant else x
            y = x @ w.mT + self.noise * torch.randn(BLOCK, num_points, self.num_targets, generator=generator)
            return Episodes(
                support_x=x[:, : shape.shot],
                support_y=y[:, : shape.shot],
                query_x=x[:, shape.shot :],
                query_y=y[:, shape.shot :],
            )

        return draw
