"""Antithetic Latin-square draws of a Gaussian with independent rows, for example one row of weights per class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_metabayes.seeding import task_noise


@dataclass(frozen=True)
class LatinSquare:
    """Assignment of shared noise vectors to the C rows of L draws w ~ N(loc, scale^2).

    The draws form P = L / 2 (rounded up) antithetic pairs. All pairs share M = max(P, C) noise vectors e_m ~ N(0, I).
    Row c of the two draws of pair j is

        w_c = loc_c + s scale_c * e_m,   m = (j + c) mod M,   sign s = 1 and -1.

    Every draw has exactly the distribution N(loc, scale^2), because different rows of a draw use different e_m. The two
    draws of a pair share noise. Different pairs share noise only between different rows. Tasks share no noise.

    Compared with L >= 2C independent draws, 1 / (2C) of the random numbers suffice, and averages of class probabilities
    are more precise. (Hammersley and Morton 1956; McKay, Beckman and Conover 1979.)

    Attributes:
        num_samples: L, the number of draws.
        num_rows: C, the number of rows of w.
    """

    num_samples: int
    num_rows: int

    @property
    def num_pairs(self) -> int:
        """Number of antithetic pairs P."""
        return (self.num_samples + 1) // 2

    def noise(self, scale: Tensor) -> Tensor:
        """Draw the M noise vectors e_m of each of T tasks, and multiply them by the scales of the rows.

        The noise of a task does not depend on the number of processes.

        Args:
            scale: [T, G, W], standard deviations of W weights per row; G is C, or 1 if all rows share a scale.

        Returns:
            scale_g * e_m, [T, G, M, W].
        """
        num_tasks, _, width = scale.shape
        shape = num_tasks, max(self.num_pairs, self.num_rows), width
        return task_noise(shape, scale, task_dim=0).unsqueeze(1) * scale.unsqueeze(2)

    def odd(self, values: Tensor) -> Tensor:
        """Apply `by_pair` to the values of an odd function f, for which f(-e_m) = -f(e_m).

        Args:
            values: f(e_m) [T, G, M, N] of M noise vectors e_m at N points; G is C rows, or 1 for equal rows.
        """
        return self.by_pair(torch.stack((values, -values), 1))

    @staticmethod
    def signs(like: Tensor) -> Tensor:
        """Return the signs 1, -1 [2, 1, 1, 1], for products with values [T, 1, P, C, N] of P pairs."""
        return torch.tensor((1.0, -1.0), dtype=like.dtype, device=like.device).view(2, 1, 1, 1)

    def by_pair(self, values: Tensor) -> Tensor:
        """Rearrange values per shared noise vector e_m into values per pair and row.

        Args:
            values: [T, 2, G, M, N], for T tasks, 2 signs, M vectors and N points; G is C rows, or 1 for equal rows.

        Returns:
            [T, 2, P, C, N], for P pairs and C rows. Entry (j, c) is the value at e_m with m = (j + c) mod M.
        """
        windows = self.cyclic(values).unfold(3, self.num_rows, 1)[:, :, :, : self.num_pairs]  # [T, 2, G, P, N, C]
        return (windows[:, :, 0] if values.shape[2] == 1 else windows.diagonal(dim1=2, dim2=5)).mT

    def cyclic(self, values: Tensor) -> Tensor:
        """Append the first values again, so that the vectors of pair j are the C successive vectors from j on.

        Args:
            values: [..., M, N], N values for each of M shared noise vectors e_m.

        Returns:
            [..., M', N] with M' = max(M, P + C - 1), the values of e_m for m = 0, ..., M - 1, 0, ...
        """
        missing = self.num_pairs + self.num_rows - 1 - values.shape[-2]
        return torch.cat((values, values[..., :missing, :]), -2) if missing > 0 else values

    def draws(self, values: Tensor) -> Tensor:
        """Rearrange values by sign and pair [T, 2, P, C, N] into values by draw [L, T, C, N]."""
        return values.flatten(1, 2)[:, : self.num_samples].transpose(0, 1)
