"""Prototypical networks on raw features, for features of every origin and unit.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from pyro_metabayes.learner import MetaLearner

MOST = 1e150  # its square is a number of float64; distances in this unit saturate the softmax


@dataclass(frozen=True, eq=False)
class SupportFrame:
    """Features (x / unit - centre) of the size of 1, whose squares neither overflow nor vanish.

    Distances between features do not depend on the centre, and are those in the unit of the user divided by the unit.

    Attributes:
        unit: a power of two, in the unit of the features.
        centre: mean of the support points [D], in this unit.
    """

    unit: float
    centre: np.ndarray

    @classmethod
    def of(cls, support_x: np.ndarray) -> Self:
        """The frame of support points [S, D] in float64."""
        support_x = np.ascontiguousarray(support_x)  # numpy's means depend on the layout, in their last digit
        first = _power_of_two(support_x)
        centre = (support_x / first).mean(0)
        second = _power_of_two(support_x / first - centre)
        return cls(first * second, centre / second)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features [N, D] in this frame."""
        with np.errstate(over="ignore", invalid="ignore"):  # the learner refuses what is not finite
            return x / self.unit - self.centre


def _power_of_two(x: np.ndarray) -> float:
    """That below the largest entry; 1 for zeros, and where the largest is not finite, which the learner refuses."""
    largest = np.abs(x).max()
    return float(2.0 ** (np.frexp(largest)[1] - 1)) if 0 < largest < np.inf else 1.0


def prototypical_networks(input_shape: tuple[int, ...], num_classes: int, unit: float = 1.0) -> MetaLearner:
    """p(y = c | x) = softmax_c(-unit^2 |x - m_c|^2) with class means m_c, in float64.

    Args:
        input_shape: [D].
        num_classes: C.
        unit: of the features.
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
