"""Checks of the features of a head that uses their directions only: unit length, and more than one direction."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.scale import all_within

UNIT = 0.01  # tolerance on the length of a feature vector: a backbone may compute in bfloat16
ONE_DIRECTION = 1e-6  # the largest 1 - cosine between a row and the mean must exceed this; float32 resolves 1e-7


def refuse_other_lengths(x: Tensor) -> None:
    """Refuse features [N, D] that are not of unit length. Rows that are zero or not finite are not checked."""
    length = torch.linalg.vector_norm(x.detach(), dim=-1)
    if all_within(length, 1 - UNIT, 1 + UNIT):
        return
    length = length[length.isfinite() & (length > 0)]
    if ((length - 1).abs() > UNIT).any():
        raise UsageError(
            f"expected features of unit length for head=cosine, got lengths from {length.min().item():.3g} to "
            f"{length.max().item():.3g}; scale them with torch.nn.functional.normalize, or take head=linear"
        )


def refuse_one_direction(x: Tensor) -> None:
    """Refuse unit features [N, D], N > 2, whose cosines all round to 1, as after adding a large common offset."""
    rows = as_double(x.detach())
    rows = rows[rows.isfinite().all(-1) & (rows != 0).any(-1)]
    if len(rows) > 2 and (rows - rows.mean(0)).square().sum(-1).max() < 2 * ONE_DIRECTION:  # |u - v|^2 = 2 - 2 cos
        raise UsageError(
            f"expected features that point in different directions for head=cosine, got {len(rows)} rows that all "
            "point in one direction: their cosines are 1 up to rounding; subtract the mean of the training features "
            "from all of them (backbone.centre=true in a run)"
        )
