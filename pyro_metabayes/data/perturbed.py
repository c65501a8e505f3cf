"""Tasks with perturbed features.

Noise tests how much a method depends on clean features. A shift turns training tasks into tasks of artificial domains.
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
    """Return a function that draws the tasks of `draw` and adds noise to their features.

    Every feature vector x [D] of support and query set is replaced by

        |x| (x + e) / |x + e|,    e_d ~ N(0, (relative |x|)^2 / D),

    which changes the direction of x but not its length.

    Args:
        draw: function that draws a block of tasks from a random generator.
        relative: length of the noise e relative to x; 0: the tasks are unchanged.
    """
    if not relative:
        return draw

    def add_noise(generator: Generator) -> Episodes:
        episodes = draw(generator).tasks(slice(None))
        episodes.support_x = _add_noise(episodes.support_x, relative, generator)
        episodes.query_x = _add_noise(episodes.query_x, relative, generator)
        return episodes

    return add_noise


def with_shift(draw: Draw, most: float) -> Draw:
    """Return a function that draws the tasks of `draw` and shifts the features of each task.

    Every feature vector x of task t is replaced by

        |x| (x + s_t) / |x + s_t|,    s_t = u_t (x_a - x_b),    u_t ~ Uniform(0, most),

    where x_a and x_b are two random queries among the tasks drawn together with t. All points of a task have the same
    shift s_t: support points, queries, and rotated copies of the queries.

    Args:
        draw: function that draws a block of tasks from a random generator.
        most: upper bound of u_t; 0: the tasks are unchanged.
    """
    if not most:
        return draw

    def shift_tasks(generator: Generator) -> Episodes:
        episodes = draw(generator).tasks(slice(None))
        points = _features(episodes.query_x, "data.train_shift").flatten(0, 1)
        one, other = points[torch.randint(len(points), (2, episodes.num_tasks), generator=generator)]
        shift = most * torch.rand(episodes.num_tasks, 1, generator=generator).to(one) * (one - other)

        def add_shift(x: Tensor) -> Tensor:
            return _of_length(x + shift.view(len(shift), *[1] * (x.dim() - 2), -1), x.norm(dim=-1, keepdim=True))

        rotations = {name: add_shift(x) for name, x in episodes.auxiliary.items() if name == "turned"}
        support, query = add_shift(episodes.support_x), add_shift(episodes.query_x)
        return replace(episodes, support_x=support, query_x=query, auxiliary=episodes.auxiliary | rotations)

    return shift_tasks


def _add_noise(x: Tensor, relative: float, generator: Generator) -> Tensor:
    length = _features(x, "task.feature_noise").norm(dim=-1, keepdim=True)
    noise = torch.randn(x.shape, generator=generator).to(x) * x.shape[-1] ** -0.5
    return _of_length(x + relative * length * noise, length)


def _of_length(x: Tensor, length: Tensor) -> Tensor:
    return x * (length / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny))


def _features(x: Tensor, setting: str) -> Tensor:
    if not x.is_floating_point() or x.dim() != 3:
        raise UsageError(
            f"expected features [tasks, points, D] for {setting}, got {x.dtype} inputs {list(x.shape)}; use a frozen "
            f"backbone, or set {setting}=0"
        )
    return x
