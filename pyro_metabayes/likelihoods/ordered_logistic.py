"""Predictions under ordinal likelihoods: classes 0 to C - 1 in a fixed order."""

from __future__ import annotations

from pyro.distributions import OrderedLogistic

from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.likelihoods.predictions import register
from pyro_metabayes.prediction.pit import Bounds


@register(OrderedLogistic)
class OrdinalPredictions(ClassPredictions):
    """Predictions of ordered classes under an OrderedLogistic likelihood."""

    @property
    def pit_bounds(self) -> Bounds:
        """P(class < y) and P(class <= y) [T, Q] of the averaged prediction at the labels y."""
        probabilities, label = self.averaged.exp(), self.labels.unsqueeze(-1)
        up_to = probabilities.cumsum(-1)
        high = up_to.gather(-1, label).squeeze(-1)
        return high - probabilities.gather(-1, label).squeeze(-1), high
