"""Shifts queries by mean(support) - mean(query), the cross-class bias of Liu et al. (2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import masked_mean


@dataclass(frozen=True, eq=False)
class ShiftedPoints:
    """The support points of tasks, followed by their queries x_i + xi with xi = mean(support) - mean(query)."""

    x: Tensor  # [T, S + Q, D]
    mask: Tensor  # [T, S + Q]
    shift: Tensor  # xi [T, 1, D]

    @classmethod
    def of(cls, observed: Observed) -> Self:
        support = masked_mean(observed.support_x, observed.support_mask)
        shift = support - masked_mean(observed.query_x, observed.query_mask)
        return cls(
            x=torch.cat((observed.support_x, observed.query_x + shift), dim=1),
            mask=torch.cat((observed.support_mask, observed.query_mask), dim=1),
            shift=shift,
        )

    def cosines(self, means: Tensor) -> Tensor:
        """Cosines of the points with class means [T, C, D] -> [T, S + Q, C]."""
        return normalize(self.x, dim=-1) @ normalize(means, dim=-1).mT


def with_shift(model: Model, w: Tensor, shift: Tensor) -> Tensor:
    """Weights [T, C, W] whose logits for x are those of w for x + shift, up to a term equal for all classes.

    Heads with a term per class are affine in x, so the shift changes only this term.

    Args:
        model: the model.
        w: weights [T, C, W].
        shift: [T, 1, D].
    """
    moved = model.outputs(w, shift) - model.outputs(w, torch.zeros_like(shift))
    return require(model, HasClassTerm, "a shift of the queries").with_class_term(w, moved.squeeze(-2))
