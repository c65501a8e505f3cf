"""Antithetic Latin-square draws of a Gaussian with independent rows, such as the weights of the classes of a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_metabayes.seeding import task_noise


@dataclass(frozen=True)
class LatinSquare:
    """Draws w_lc = loc_c + s scale_c * e_m, of signs s = 1 and -1 and m = (j + c) mod M, j = 0, ..., P - 1.

    P = L / 2 pairs, rounded up, share M = max(P, C) independent e_m ~ N(0, I). Every draw has exactly the distribution
    N(loc, scale^2), since its C rows have different e_m. Only the two draws of a pair, and different rows of different
    draws, share noise; different tasks share none.

    Compared with L independent draws this takes 1 / (2C) of the random numbers and of their products with the inputs.
    Averages of class probabilities are more precise: what is odd in the noise cancels within a pair, and noise that
    moves all logits alike does not change probabilities. (Hammersley and Morton 1956; McKay, Beckman and Conover 1979.)

    Attributes:
        num_samples: L, the number of draws.
        num_rows: C, the number of rows of w.
    """

    num_samples: int
    num_rows: int

    @property
    def num_pairs(self) -> int:
        """P."""
        return (self.num_samples + 1) // 2

    def noise(self, scale: Tensor) -> Tensor:
        """scale_g * e_m [T, G, M, W] for scale [T, G, W], where G is 1 (rows share one scale) or C.

        The random numbers of a task follow those of the task before, so that they do not depend on the batches.
        """
        num_tasks, _, width = scale.shape
        shape = num_tasks, max(self.num_pairs, self.num_rows), width
        return task_noise(shape, scale, task_dim=0).unsqueeze(1) * scale.unsqueeze(2)

    def odd(self, values: Tensor) -> Tensor:
        """Values [T, G, M, N] that are odd in the noise -> [T, 2, P, C, N], as `by_pair`."""
        return self.by_pair(torch.stack((values, -values), 1))

    def by_pair(self, values: Tensor) -> Tensor:
        """Rearranges values that were computed once for each shared noise vector, by pair and row.

        Args:
            values: [T, 2, G, M, N], for both signs s and the M vectors e_m; G is 1 (the same for all rows) or C.

        Returns:
            [T, 2, P, C, N]; entry (j, c) is the value at the vector of row c in pair j, m = (j + c) mod M. It is a view
            of a small copy.
        """
        size = self.num_pairs + self.num_rows - 1
        if size > values.shape[3]:  # m = 0, ..., M - 1, 0, ...
            values = torch.cat((values, values[:, :, :, : size - values.shape[3]]), 3)
        windows = values.unfold(3, self.num_rows, 1)[:, :, :, : self.num_pairs]  # [T, 2, G, P, N, C]
        return (windows[:, :, 0] if values.shape[2] == 1 else windows.diagonal(dim1=2, dim2=5)).mT

    def draws(self, values: Tensor) -> Tensor:
        """Values [T, 2, P, C, N] of the draws of pairs -> [L, T, C, N]."""
        return values.flatten(1, 2)[:, : self.num_samples].transpose(0, 1)
