"""Noise on the features of tasks: how far does a method lean on their being clean?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

Draw = Callable[[Generator], Episodes]


def with_noise(draw: Draw, relative: float) -> Draw:
    """The tasks of `draw`, every feature vector x [D] of support and query turned into

        |x| (x + e) / |x + e|,    e ~ N(0, (relative |x|)^2 / D),

    so that noise of `relative` times its length turns it, and leaves its length. relative = 0: as they are.
    """
    if not relative:
        return draw

    def noisy(generator: Generator) -> Episodes:
        episodes = draw(generator)
        episodes.support_x = _turned(episodes.support_x, relative, generator)
        episodes.query_x = _turned(episodes.query_x, relative, generator)
        return episodes

    return noisy


def _turned(x: Tensor, relative: float, generator: Generator) -> Tensor:
    if not x.is_floating_point() or x.dim() != 3:
        raise UsageError(
            f"expected features [T, N, D] for task.feature_noise, got {x.dtype} inputs {list(x.shape)}; take a frozen "
            "backbone, or task.feature_noise=0"
        )
    length = x.norm(dim=-1, keepdim=True)
    noise = torch.randn(x.shape, generator=generator).to(x) * x.shape[-1] ** -0.5
    moved = x + relative * length * noise
    return moved * (length / moved.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny))
