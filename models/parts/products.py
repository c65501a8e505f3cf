"""Products of weights and features of a batch of tasks, for any number of samples of the weights."""

from __future__ import annotations

import torch
from torch import Size, Tensor


def fold_samples(w: Tensor, x: Tensor) -> Tensor:
    """Compute the products w_c . x_i of weights of C classes [..., T, C, D] and N points [T, N, D] of T tasks.

    D is the number of features. The axes of samples are merged with the class axis, so that each task is one matrix
    product. With gradients the product is class-major (w @ x^T). The query-major product (x @ w^T) is a little faster,
    but its gradient costs five times as much.

    Returns:
        Tensor [..., T, C, N].
    """
    if w.dim() == 3:
        return torch.bmm(w, x.mT) if torch.is_grad_enabled() else torch.bmm(x, w.mT).mT
    return unmerged(merged(w) @ x.mT, w.shape[:-1])


def merged(w: Tensor) -> Tensor:
    """Reshape L samples of the weights of C classes in T tasks [..., T, C, D] to one matrix per task [T, L C, D]."""
    return w.reshape(w.shape[:-3].numel(), *w.shape[-3:]).transpose(0, 1).flatten(1, 2)


def unmerged(products: Tensor, shape: Size) -> Tensor:
    """Reshape products of merged weights with N points [T, L C, N] to [..., T, C, N]; undoes `merged`.

    Args:
        products: [T, L C, N] for T tasks, L samples and C classes.
        shape: [..., T, C], the shape of the weights before `merged`, without the last axis.
    """
    apart = products.unflatten(1, (shape[:-2].numel(), shape[-1])).transpose(0, 1)
    return apart.reshape(*shape, products.shape[-1])


def unfold_samples(cotangent: Tensor, x: Tensor) -> Tensor:
    """Compute sum_i g_ci x_i over points i for each class c.

    Args:
        cotangent: g [..., T, C, N], for C classes and N points of T tasks.
        x: D features of the points [T, N, D].

    Returns:
        Tensor [..., T, C, D].
    """
    return torch.bmm(cotangent, x) if cotangent.dim() == 3 else fold_samples(cotangent, x.mT)


def samples_summed(cotangent: Tensor, w: Tensor) -> Tensor:
    """Compute sum_c g_ci w_c, summed over classes c and samples.

    Args:
        cotangent: g [..., T, C, N], for N points, C classes and T tasks.
        w: weights for D features [..., T, C, D].

    Returns:
        Tensor [T, N, D].
    """
    products = cotangent.mT @ w
    return products.flatten(0, -4).sum(0) if products.dim() > 3 else products
