"""Converts the rows of a table to points of a regression."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.data.sources.chosen_columns import Rows
from pyro_metabayes.data.sources.scales import Scales


def points_of(rows: Rows, scales: Scales, family: str) -> Tensor:
    """Return the N rows as points [N, D' + 1]: D' input columns and the response.

    The inputs are the standardised features and, if rows have them, the root of the weight and the offset.
    """
    values = scales.standardised(rows.without_offset(family).values)
    beside = [] if rows.weights is None else [(rows.weights / scales.weight).sqrt()]
    if rows.offset is not None and family != "gaussian":
        beside.append(rows.offset - scales.offset)
    return torch.cat((values[:, :-1], *(column.unsqueeze(-1) for column in beside), values[:, -1:]), -1)
