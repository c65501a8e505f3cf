"""Shift of the queries by mean(support) - mean(query), a correction of the cross-class bias (Liu et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.scale import SHORTEST
from pyro_metabayes.transductive.assignments import masked_mean


@dataclass(frozen=True, eq=False)
class ShiftedPoints:
    """Support points of T tasks, followed by the shifted queries.

    The shift mean(support) - mean(query) is added to each query. A task has S support points and Q queries.
    """

    x: Tensor  # [T, S + Q, D]
    mask: Tensor  # [T, S + Q], False for masked points
    shift: Tensor  # xi [T, 1, D]

    @classmethod
    def of(cls, observed: Observed) -> Self:
        """Compute the shift of each task, and shift the queries."""
        support = masked_mean(observed.support_x, observed.support_mask)
        shift = support - masked_mean(observed.query_x, observed.query_mask)
        return cls(
            x=torch.cat((observed.support_x, observed.query_x + shift), dim=1),
            mask=torch.cat((observed.support_mask, observed.query_mask), dim=1),
            shift=shift,
        )

    def cosines(self, means: Tensor) -> Tensor:
        """Compute the cosines [T, S + Q, C] of all points with class means [T, C, D]."""
        length = torch.linalg.vector_norm(self.x, dim=-1, keepdim=True).clamp(min=SHORTEST)
        return self.x @ normalize(means, dim=-1).mT / length  # divides the product, which is smaller than x


def with_shift(model: Model, w: Tensor, shift: Tensor) -> Tensor:
    """Return weights whose logits at x equal the logits of the weights w at x + shift.

    The logits are affine in x, so only the additive term of each class changes.

    Args:
        model: a model with a term per class in the logits.
        w: [T, C, W], W weights for each of C classes of T tasks.
        shift: [T, 1, D], shift of the D features.

    Returns:
        Weights [T, C, W].
    """
    moved = model.outputs(w, shift) - model.outputs(w, torch.zeros_like(shift))
    return require(model, HasClassTerm, "a shift of the queries").with_class_term(w, moved.squeeze(-2))
