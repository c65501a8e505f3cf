"""Functions from features to logits for fixed weights. Quantities of the weights alone are computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Size, Tensor

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.models.parts.products import merged, unmerged


@dataclass(frozen=True, eq=False)
class LogitsOfWeights:
    """Function from features x_i to logits v_c . x_i + b_c for fixed weights (v_c, b_c) of each class c.

    A call maps features [T, N, D] (T tasks of N points with D features) to logits [..., T, N, C] of C classes.

    Attributes:
        directions: v [T, L C, D], with the axes of L samples and C classes merged.
        offsets: b, of a shape that broadcasts to [T, L C, N].
        shape: [..., T, C], the shape of samples, tasks and classes before samples and classes were merged.
    """

    directions: Tensor
    offsets: Tensor
    shape: Size

    @classmethod
    def of(cls, v: Tensor, b: Tensor) -> Self:
        """Construct the function from directions v and offsets b.

        Args:
            v: directions for C classes and D features in T tasks [..., T, C, D].
            b: offsets [..., T, C, 1], or a scalar.
        """
        return cls(merged(v), merged(b) if b.dim() else b, v.shape[:-1])

    def __call__(self, x: Tensor) -> Tensor:
        return unmerged(torch.baddbmm(self.offsets, self.directions, x.mT), self.shape).mT


@dataclass(frozen=True, eq=False)
class LogitsOfSquare:
    """Function from features x_i to logits s_lc v_lc . x_i + b_lc for L draws l of the weights v_lc of class c.

    A call maps features [T, N, D] (T tasks of N points with D features) to logits [L, T, N, C]. The draws v_lc = loc_c
    +- noise_m share noise vectors (`LatinSquare`). So only loc and noise are multiplied with the features.

    Attributes:
        square: says which noise vector m each class has in each draw.
        rows: all vectors that are multiplied with the features [T, R, D]: those of the noise, then loc.
        signs: `LatinSquare.signs`.
        shared: whether all classes have the same noise vectors.
        scale: s, a scalar or, for P pairs of draws, [T, 2, P, C, 1].
        offsets: b, a scalar or [T, 2, P, C, 1].
    """

    square: LatinSquare
    rows: Tensor
    signs: Tensor
    shared: bool
    scale: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, square: LatinSquare, loc: Tensor, noise: Tensor, scale: Tensor, offsets: Tensor) -> Self:
        """Construct the function.

        Args:
            square: assignment of noise vectors to the C classes of each draw.
            loc: means of the weights of C classes in T tasks [T, C, D].
            noise: M noise vectors per task [T, G, M, D], with G = 1 (the same for all classes) or C.
            scale: s, a scalar or, for P pairs of draws, [T, 2, P, C, 1].
            offsets: b, a scalar or [T, 2, P, C, 1].
        """
        shared = noise.shape[1] == 1
        of_noise = square.cyclic(noise) if shared else square.by_pair(noise.unsqueeze(1)).squeeze(1)
        rows = torch.cat((of_noise.flatten(1, 2), loc), 1)
        return cls(square, rows, square.signs(loc), shared, scale, offsets)

    def __call__(self, x: Tensor) -> Tensor:
        products = torch.bmm(self.rows, x.mT).unsqueeze(1)  # [T, 1, R, N]
        num_rows = self.square.num_rows
        of_noise, of_loc = products[:, :, :-num_rows], products[:, :, None, -num_rows:]
        by_pair = self.square.by_pair(of_noise.unsqueeze(2)) if self.shared else of_noise.unflatten(2, (-1, num_rows))
        of_draws = torch.addcmul(of_loc, by_pair, self.signs)  # [T, 2, P, C, N]
        return self.square.draws(of_draws.mul_(self.scale).add_(self.offsets)).mT
