"""Logits as functions of the features alone, so that what depends on the weights is computed only once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Size, Tensor

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.models.parts.products import merged, unmerged


@dataclass(frozen=True, eq=False)
class LogitsOfWeights:
    """The function from features x [T, N, D] to logits v_c . x_i + b_c [..., T, N, C] under fixed weights.

    Attributes:
        directions: v [T, L C, D] of L samples.
        offsets: b, of a shape that expands to [T, L C, N].
        shape: [..., T, C], the axes of the logits before they were merged.
    """

    directions: Tensor
    offsets: Tensor
    shape: Size

    @classmethod
    def of(cls, v: Tensor, b: Tensor) -> Self:
        """Construct the function from v [..., T, C, D] and b, [..., T, C, 1] or a scalar that all classes share."""
        return cls(merged(v), merged(b) if b.dim() else b, v.shape[:-1])

    def __call__(self, x: Tensor) -> Tensor:
        return unmerged(torch.baddbmm(self.offsets, self.directions, x.mT), self.shape).mT


@dataclass(frozen=True, eq=False)
class LogitsOfSquare:
    """The function from features x [T, N, D] to logits s_lc v_lc . x_i + b_lc [L, T, N, C] of draws by a Latin square.

    The draws v_lc = loc_c +- noise_m share their products with the features, so v is not computed.

    Attributes:
        square: assigns noise to the classes of each draw.
        loc: means of the weights of C classes in T tasks [T, C, D].
        noise: M noise vectors per task [T, G, M, D], with G = 1 (the same for all classes) or C.
        scale: s, a scalar or, for P pairs of draws, [T, 2, P, C, 1].
        offsets: b, of such a shape.
    """

    square: LatinSquare
    loc: Tensor
    noise: Tensor
    scale: Tensor
    offsets: Tensor

    @cached_property
    def signs(self) -> Tensor:
        return self.square.signs(self.noise)

    def __call__(self, x: Tensor) -> Tensor:
        points = x.mT
        of_noise = torch.bmm(self.noise.flatten(1, 2), points).view(*self.noise.shape[:3], -1)  # [T, G, M, N]
        of_loc = torch.bmm(self.loc, points)[:, None, None]
        products = torch.addcmul(of_loc, self.square.by_pair(of_noise.unsqueeze(1)), self.signs)  # [T, 2, P, C, N]
        return self.square.draws(products.mul_(self.scale).add_(self.offsets)).mT
