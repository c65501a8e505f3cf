"""Normalisation of channels over the points of a task, without running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def point_shares(mask: Tensor, over_batch: bool = False) -> Tensor:
    """Compute the weight [T, 1, N] of each point in a mean over the points of a task, or of the batch.

    Args:
        mask: [T, N], for N points of T tasks; masked points have weight 0.
        over_batch: whether the mean is over the points of all tasks of the batch.
    """
    points = (-2, -1) if over_batch else (-1,)
    return (mask / mask.sum(points, keepdim=True).clamp(min=1)).unsqueeze(-2)


class TaskNorm(nn.Module):
    """Normalisation layer (x - mean) / sqrt(variance + eps) * weight + bias, with statistics over one task.

    For a single task, this is BatchNorm in training mode. The released code of SIB uses BatchNorm in training mode at
    test time too.

    Args:
        num_channels: number of channels H, each with a weight and a bias.
        eps: constant added to the variance.
        over_batch: whether statistics are over all tasks of the batch, as in BatchNorm; tasks are then dependent.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, over_batch: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps, self.over_batch = eps, over_batch

    def forward(self, x: Tensor, shares: Tensor, term: Tensor | None = None) -> Tensor:
        """Normalise each channel of x over the points of a task.

        Args:
            x: [..., T, N, C H], H channels for each of C classes, at N points of T tasks. All classes use the same H
                weights and biases.
            shares: [T, 1, N], the result of `point_shares`.
            term: [..., T, 1, C H], added to the result; None: 0.

        Returns:
            Tensor of the shape of x.
        """
        shares, sets = shares.to(x.dtype), x.shape[-1] // len(self.weight)
        weight, bias = (self.weight, self.bias) if sets == 1 else (self.weight.repeat(sets), self.bias.repeat(sets))
        centred = x - self._mean(x, shares)
        scale = (self._mean(centred.square(), shares) + self.eps).rsqrt() * weight
        return torch.addcmul(bias if term is None else bias + term, centred, scale)

    def _mean(self, x: Tensor, shares: Tensor) -> Tensor:
        """Average x over the points of each task, by a matrix product without a copy of x."""
        mean = torch.bmm(shares, x) if x.dim() == 3 else shares @ x  # bmm has less overhead per call
        return mean.sum(-3, keepdim=True) if self.over_batch else mean
