"""Tasks whose features are not clean, or not where those of the training were.

Noise asks how far a method leans on clean features; a shift makes training tasks of domains that no data set has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.stream import Block
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

Draw = Callable[[Generator], Block]


def with_noise(draw: Draw, relative: float) -> Draw:
    """The tasks of `draw`, every feature vector x [D] of support and query turned into

        |x| (x + e) / |x + e|,    e ~ N(0, (relative |x|)^2 / D),

    so that noise of `relative` times its length turns it, and leaves its length. relative = 0: as they are.
    """
    if not relative:
        return draw

    def noisy(generator: Generator) -> Episodes:
        episodes = draw(generator).tasks(slice(None))
        episodes.support_x = _turned(episodes.support_x, relative, generator)
        episodes.query_x = _turned(episodes.query_x, relative, generator)
        return episodes

    return noisy


def with_shift(draw: Draw, most: float) -> Draw:
    """The tasks of `draw`, every feature vector of task t turned into

        |x| (x + s_t) / |x + s_t|,    s_t = u_t (x_a - x_b),    u_t ~ Uniform(0, most),

    x_a and x_b two queries of the block that t is drawn in: one direction of the data for all points of a task, its
    support set, queries and their turned views. most = 0: as they are.
    """
    if not most:
        return draw

    def shifted(generator: Generator) -> Episodes:
        episodes = draw(generator).tasks(slice(None))
        points = _features(episodes.query_x, "train_shift").flatten(0, 1)
        one, other = points[torch.randint(len(points), (2, episodes.num_tasks), generator=generator)]
        shift = most * torch.rand(episodes.num_tasks, 1, generator=generator).to(one) * (one - other)

        def moved(x: Tensor) -> Tensor:
            return _of_length(x + shift.view(len(shift), *[1] * (x.dim() - 2), -1), x.norm(dim=-1, keepdim=True))

        turned = {name: moved(x) for name, x in episodes.auxiliary.items() if name == "turned"}
        support, query = moved(episodes.support_x), moved(episodes.query_x)
        return replace(episodes, support_x=support, query_x=query, auxiliary=episodes.auxiliary | turned)

    return shifted


def _turned(x: Tensor, relative: float, generator: Generator) -> Tensor:
    length = _features(x, "feature_noise").norm(dim=-1, keepdim=True)
    noise = torch.randn(x.shape, generator=generator).to(x) * x.shape[-1] ** -0.5
    return _of_length(x + relative * length * noise, length)


def _of_length(x: Tensor, length: Tensor) -> Tensor:
    return x * (length / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny))


def _features(x: Tensor, setting: str) -> Tensor:
    if not x.is_floating_point() or x.dim() != 3:
        raise UsageError(
            f"expected features [T, N, D] for task.{setting}, got {x.dtype} inputs {list(x.shape)}; take a frozen "
            f"backbone, or task.{setting}=0"
        )
    return x
