"""Products of weights and features of a batch of tasks, for any number of samples of the weights."""

from __future__ import annotations

import torch
from torch import Size, Tensor


def fold_samples(w: Tensor, x: Tensor) -> Tensor:
    """w_c . x_i for weights [..., T, C, D] and points [T, N, D] -> [..., T, C, N].

    The product is class-major (w @ x^T): the query-major product is a little faster, but its gradient costs five times
    as much. The sample axes are merged with the class axis, so that each task is one matrix
    product [L C, D] x [D, N].
    """
    if w.dim() == 3:
        return torch.bmm(w, x.mT) if torch.is_grad_enabled() else torch.bmm(x, w.mT).mT
    return unmerged(merged(w) @ x.mT, w.shape[:-1])


def merged(w: Tensor) -> Tensor:
    """[..., T, C, D] -> [T, L C, D], L the number of samples: one matrix per task."""
    return w.reshape(w.shape[:-3].numel(), *w.shape[-3:]).transpose(0, 1).flatten(1, 2)


def unmerged(products: Tensor, shape: Size) -> Tensor:
    """[T, L C, N] -> [..., T, C, N], for the shape [..., T, C] of the merged axes."""
    apart = products.unflatten(1, (shape[:-2].numel(), shape[-1])).transpose(0, 1)
    return apart.reshape(*shape, products.shape[-1])


def unfold_samples(cotangent: Tensor, x: Tensor) -> Tensor:
    """sum_i g_ci x_i for cotangents [..., T, C, N] and points [T, N, D] -> [..., T, C, D]."""
    return torch.bmm(cotangent, x) if cotangent.dim() == 3 else fold_samples(cotangent, x.mT)


def samples_summed(cotangent: Tensor, w: Tensor) -> Tensor:
    """sum_c g_ci w_c over classes and samples: cotangents [..., T, C, N], weights [..., T, C, D] -> [T, N, D]."""
    products = cotangent.mT @ w
    return products.flatten(0, -4).sum(0) if products.dim() > 3 else products
