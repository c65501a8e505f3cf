"""Normalisation over the points of one task: what a batch norm must not be in meta-learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def point_shares(mask: Tensor, over_batch: bool = False) -> Tensor:
    """The weight of each point in the mean over its task, or over the batch: mask [T, N] -> [T, 1, N]."""
    points = (-2, -1) if over_batch else (-1,)
    return (mask / mask.sum(points, keepdim=True).clamp(min=1)).unsqueeze(-2)


class TaskNorm(nn.Module):
    """Normalises each channel over the points of one task, never across tasks, without running statistics.

    What BatchNorm in training mode does to a batch of one task, as the released code runs it at
    test time too; with more tasks it would let them see each other: over_batch, an ablation, does that.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, over_batch: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps, self.over_batch = eps, over_batch

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """x and the result [..., T, N, H]; shares [T, 1, N] of `point_shares`, the same for all layers of a network."""
        shares = shares.to(x.dtype)
        centred = x - self._mean(x, shares)
        scale = (self._mean(centred.square(), shares) + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias, centred, scale)

    def _mean(self, x: Tensor, shares: Tensor) -> Tensor:
        """Over the points [..., T, 1, H], as a product of matrices, which writes no further array of x's size."""
        mean = torch.bmm(shares, x) if x.dim() == 3 else shares @ x  # bmm: a step of one task is all calls, no work
        return mean.sum(-3, keepdim=True) if self.over_batch else mean
