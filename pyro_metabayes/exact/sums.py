"""Sufficient statistics of the points of groups for the likelihood of a linear mixed model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.effect_structure import EffectStructure


@dataclass(frozen=True)
class Sums:
    """Sufficient statistics of n points (x, y) in T groups for the likelihood of a linear mixed model.

    x are the D features with coefficients, i.e. all features except those of inner groups. z are the R features with
    effects that vary by group. y is the label.
    """

    zz: Tensor  # z^T z of each group [T, R, R]
    zp: Tensor  # z^T (x, y) of each group [T, R, D + 1]
    pp: Tensor  # (x, y)^T (x, y) of all points [D + 1, D + 1]
    num_points: int  # n


def sums_of(episodes: Episodes, num_random: int, num_inner: int = 0) -> Sums:
    """Compute the sufficient statistics of the query points of all groups, in float64 on the CPU."""
    if episodes.query_y.shape[-1] != 1 or episodes.support_mask.any():
        raise UsageError(
            "expected only queries with one number per label, got support points or several numbers per label; use "
            "Groups.whole"
        )
    episodes = episodes.to("cpu")  # the optimiser reads every loss, and some accelerators have no float64
    points = torch.cat((episodes.query_x, episodes.query_y), -1).double() * episodes.query_mask.unsqueeze(-1)
    z = points[..., :num_random]
    points = EffectStructure(num_random, num_inner).without_inner(points)
    return Sums(z.mT @ z, z.mT @ points, (points.mT @ points).sum(0), int(episodes.query_mask.sum()))
