"""Normalisation of channels over the points of a task, without running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def point_shares(mask: Tensor, over_batch: bool = False) -> Tensor:
    """Compute the weight [T, 1, N] of each point in a mean over its task, or over the batch.

    Args:
        mask: [T, N], for N points of T tasks; masked points have weight 0.
        over_batch: whether the mean is over the points of all tasks of the batch.
    """
    points = (-2, -1) if over_batch else (-1,)
    return (mask / mask.sum(points, keepdim=True).clamp(min=1)).unsqueeze(-2)


class TaskNorm(nn.Module):
    """Normalisation layer, (x - mean) / sqrt(variance + eps) * weight + bias, with statistics over one task.

    For one task this is BatchNorm in training mode, which SIB's released code also uses at test time.

    Args:
        num_channels: number of channels H, each with a weight and a bias.
        eps: added to the variance.
        over_batch: whether statistics are over all tasks of the batch, as in BatchNorm; then tasks are not independent.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, over_batch: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps, self.over_batch = eps, over_batch

    def forward(self, x: Tensor, shares: Tensor, term: Tensor | None = None) -> Tensor:
        """Normalise each channel of x over the points of a task.

        Args:
            x: [..., T, N, C H], H channels for each of C classes, at N points of T tasks. The classes share the H
                weights and biases.
            shares: [T, 1, N] from `point_shares`.
            term: added to the result, [..., T, 1, C H]; None: 0.

        Returns:
            Tensor of the shape of x.
        """
        shares, sets = shares.to(x.dtype), x.shape[-1] // len(self.weight)
        weight, bias = (self.weight, self.bias) if sets == 1 else (self.weight.repeat(sets), self.bias.repeat(sets))
        centred = x - self._mean(x, shares)
        scale = (self._mean(centred.square(), shares) + self.eps).rsqrt() * weight
        return torch.addcmul(bias if term is None else bias + term, centred, scale)

    def _mean(self, x: Tensor, shares: Tensor) -> Tensor:
        """Average x over the points of each task by a matrix product, which needs no copy of x."""
        mean = torch.bmm(shares, x) if x.dim() == 3 else shares @ x  # bmm has less overhead per call
        return mean.sum(-3, keepdim=True) if self.over_batch else mean
