"""Pretrained classifier without adaptation, the baseline of domain adaptation."""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import FromClassifier


class Guide(pyro_metabayes.Guide):
    """Point estimate at the weights w_0 of the pretrained classifier, equal for all tasks.

    q(w) = delta(w_0), with w_0 [classes, weights per class] fixed. A run sets w_0 by `start_at_classes`; until then w_0
    is random. Only the scale of the head is learned. The scale does not change the predicted classes.

    Raises:
        UsageError: the model cannot take the weights of a classifier.
    """

    needs_shared_classes = True
    requires = (FromClassifier,)
    initial: Tensor

    def __init__(self, model: pyro_metabayes.Model, num_classes: int, num_weights: int) -> None:
        super().__init__(model)
        self.num_classes = num_classes
        self.register_buffer("initial", torch.randn(num_classes, num_weights) * num_weights**-0.5)

    def start_at_classes(self, weights: Tensor) -> None:
        """Set w_0 to the weights of a cosine classifier [classes, features], before training."""
        self.initial.copy_(self.require(FromClassifier).of_classifier(weights))

    def posterior(self, observed: Observed) -> TorchDistribution:
        self.check(observed)
        return Delta(self.initial.expand(observed.num_tasks, -1, -1), event_dim=2)
