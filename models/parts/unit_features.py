"""Checks that features for the cosine head have unit length and different directions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.scale import all_within

UNIT = 0.01  # tolerance on the length of a feature vector: a backbone may compute in bfloat16
ONE_DIRECTION = 1e-6  # the largest 1 - cos(row, mean of rows) must exceed this; the resolution of float32 is 1e-7


def refuse_other_lengths(x: Tensor) -> None:
    """Raise a UsageError if rows of x [N, D] do not have unit length. Rows of zeros or with inf or NaN are ignored."""
    length = torch.linalg.vector_norm(x.detach(), dim=-1)
    if all_within(length, 1 - UNIT, 1 + UNIT):
        return
    length = length[length.isfinite() & (length > 0)]
    if ((length - 1).abs() > UNIT).any():
        raise UsageError(
            f"expected features of unit length for head=cosine, got lengths from {length.min().item():.3g} to "
            f"{length.max().item():.3g}; scale them with torch.nn.functional.normalize, or set head=linear"
        )


def refuse_one_direction(x: Tensor) -> None:
    """Raise a UsageError if x [N, D] has more than two rows and all rows have the same direction up to rounding.

    The rows have unit length. A large common offset of the features gives rows of the same direction.
    """
    rows = as_double(x.detach())
    rows = rows[rows.isfinite().all(-1) & (rows != 0).any(-1)]
    if len(rows) > 2 and (rows - rows.mean(0)).square().sum(-1).max() < 2 * ONE_DIRECTION:  # |u - v|^2 = 2 - 2 cos
        raise UsageError(
            f"expected features of different directions for head=cosine, got {len(rows)} rows that all point in one "
            "direction; subtract the mean of the training features from all features (in a run: backbone.centre=true)"
        )
