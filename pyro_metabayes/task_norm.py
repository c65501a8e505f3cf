"""Normalisation over the points of one task: what a batch norm must not be in meta-learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TaskNorm(nn.Module):
    """Normalises each channel over the points of one task, never across tasks, without running statistics.

    What BatchNorm in training mode does to a batch of one task, as the released code runs it at
    test time too; with more tasks it would let them see each other: over_batch, an ablation, does that.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, over_batch: bool = False) -> None:
        super().__init__()
        self.points = (-3, -2) if over_batch else (-2,)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [..., T, N, H], mask [T, N, 1] -> [..., T, N, H]."""
        share = mask.to(x.dtype) / mask.sum(self.points, keepdim=True).clamp(min=1)
        mean = (share * x).sum(self.points, keepdim=True)
        centred = x - mean
        variance = (share * centred.square()).sum(self.points, keepdim=True)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias
