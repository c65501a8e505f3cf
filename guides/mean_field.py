"""One Gaussian posterior for all tasks: the baseline without adaptation, and the file to copy for a new guide."""

from __future__ import annotations

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import nn

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior q(w) = N(loc, diag(scale^2)) over the task weights w, equal for all tasks.

    loc and scale [classes, weights per class] are learned. If the order of the classes in a task is random, the
    accuracy is at chance.

    Args:
        scale: standard deviation of each weight before training.

    Raises:
        UsageError: scale is not positive.
    """

    def __init__(self, model: pyro_metabayes.Model, num_classes: int, num_weights: int, scale: float = 0.1) -> None:
        super().__init__(model)
        if scale <= 0:
            raise UsageError(f"expected guide.scale > 0, got {scale}")
        self.num_classes = num_classes
        self.loc = nn.Parameter(torch.randn(num_classes, num_weights) * num_weights**-0.5)
        self.log_scale = nn.Parameter(torch.full((num_classes, num_weights), scale).log())

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        normal = Normal(self.loc, self.log_scale.exp())
        return normal.expand((observed.num_tasks, *self.loc.shape)).to_event(2)
