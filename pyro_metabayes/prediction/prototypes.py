"""Prototypical networks without a backbone, on features of any mean and scale.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from pyro_metabayes.learner import MetaLearner

MOST = 1e150  # largest unit: the square is finite in float64, and distances times the square saturate the softmax


@dataclass(frozen=True, eq=False)
class SupportFrame:
    """Standardisation of features x to x / unit - centre, which is of the order of 1, so that squares do not overflow.

    Distances between points are divided by the unit.

    Attributes:
        unit: scale of the support points, a power of two.
        centre: [D], mean of the support points divided by the unit, for D features.
    """

    unit: float
    centre: np.ndarray

    @classmethod
    def of(cls, support_x: np.ndarray) -> Self:
        """Compute unit and centre from support points [S, D] in float64."""
        support_x = np.ascontiguousarray(support_x)  # the last digits of numpy's means depend on the memory layout
        first = _power_of_two(support_x)
        centre = (support_x / first).mean(0)
        second = _power_of_two(support_x / first - centre)
        return cls(first * second, centre / second)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Standardise the features [N, D] of N points: x / unit - centre."""
        with np.errstate(over="ignore", invalid="ignore"):  # the learner refuses values that are not finite
            return x / self.unit - self.centre


def _power_of_two(x: np.ndarray) -> float:
    """Return the largest power of two up to the largest absolute entry; 1 if this entry is 0 or not finite."""
    largest = np.abs(x).max()
    return float(2.0 ** (np.frexp(largest)[1] - 1)) if 0 < largest < np.inf else 1.0


def prototypical_networks(input_shape: tuple[int, ...], num_classes: int, unit: float = 1.0) -> MetaLearner:
    """Build the classifier p(y = c | x) = softmax_c(-unit^2 |x - m_c|^2) in float64; m_c is the mean of class c.

    Args:
        input_shape: (D,), the number of features.
        num_classes: number of classes C.
        unit: the divisor of the features x (`SupportFrame.unit`).
    """
    learner = MetaLearner.from_specification(
        {  # a specification, since the engine imports no model and no guide
            "input_shape": list(input_shape),
            "num_classes": num_classes,
            "particles": 1,
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "head": {"_target_": "models.heads.Linear"},
            "prior": {"_target_": "models.priors.Flat"},
            "model": {"_target_": "models.few_shot_classifier.Model"},
            "guide": {"_target_": "guides.proto.Guide"},
            "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
        }
    ).double()
    scale = torch.tensor(min(unit, MOST) ** 2, dtype=torch.float64)
    learner.load_weights(learner.state_dict() | {"model.head.scale": scale})
    return learner
