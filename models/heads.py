"""Heads: how the weights of a task turn features into logits, with the closed form of the pullback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_metabayes.specification.recorded import Recorded

Pullback = Callable[[Tensor], Tensor]
LARGE = 65536  # numbers in w from which a gradient of our own is faster than autograd's


def fold_samples(w: Tensor, x: Tensor) -> Tensor:
    """w_c . x_i for weights [..., T, C, D] and points [T, N, D] -> [..., T, C, N].

    Class-major (w @ x^T), since the gradient of the query-major product, itself a little faster, costs five times as
    much; samples are folded into the classes, so that each task is one matrix product.
    """
    if w.dim() == 3:
        return torch.bmm(w, x.mT) if torch.is_grad_enabled() else torch.bmm(x, w.mT).mT
    samples, num_classes = w.shape[:-3].numel(), w.shape[-2]
    folded = w.reshape(samples, *w.shape[-3:]).transpose(0, 1).flatten(1, 2)  # [T, L*C, D]
    products = (folded @ x.mT).unflatten(1, (samples, num_classes)).transpose(0, 1)
    return products.reshape(*w.shape[:-1], x.shape[-2])


def unfold_samples(cotangent: Tensor, x: Tensor) -> Tensor:
    """sum_i g_ci x_i for cotangents [..., T, C, N] and points [T, N, D] -> [..., T, C, D]."""
    return torch.bmm(cotangent, x) if cotangent.dim() == 3 else fold_samples(cotangent, x.mT)


def samples_summed(cotangent: Tensor, w: Tensor) -> Tensor:
    """sum_c g_ci w_c over classes and samples: cotangents [..., T, C, N], weights [..., T, C, D] -> [T, N, D]."""
    products = cotangent.mT @ w
    return products.flatten(0, -4).sum(0) if products.dim() > 3 else products


class Head(Recorded, nn.Module):
    """What the few-shot classifier asks of a head; w [..., T, C, W], x [T, N, D], logits [..., T, N, C]."""

    def num_weights(self, num_features: int) -> int:
        """W, the size of one class's weights, for D features."""
        raise NotImplementedError

    def event_shape(self, num_classes: int, num_features: int) -> Size:
        """The shape of one task's weights."""
        return Size((num_classes, self.num_weights(num_features)))

    def initial_weights(self, num_classes: int, num_features: int) -> Tensor:
        """Random weights of about unit length, from which a guide may start."""
        num_weights = self.num_weights(num_features)
        return torch.randn(num_classes, num_weights) * num_weights**-0.5

    def prototypes(self, means: Tensor) -> Tensor:
        """Weights [..., C, W] that classify by the nearest of the class means [..., C, D]."""
        raise NotImplementedError

    def loss_range(self, num_classes: int) -> Tensor | None:
        """The length of the interval that holds the cross-entropy of any point; None where there is none."""
        return None

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits."""
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Logits, and the function from a cotangent on them [..., T, N, C] to one on w."""
        raise NotImplementedError


class Cosine(Head):
    """logits_ic = scale * (cos(w_c, x_i) + bias), with x_i of unit length.

    scale is learned, from 10; bias is learned, from 0: the softmax does not see it, a synthetic
    gradient network does. (Gidaris and Komodakis 2018; SIB's released code.)
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def num_weights(self, num_features: int) -> int:
        return num_features

    def prototypes(self, means: Tensor) -> Tensor:
        return means

    def loss_range(self, num_classes: int) -> Tensor:
        """2 scale + log C: from 0 to log(1 + (C - 1) exp(2 scale)), where all cosines are at their ends."""
        return 2 * self.scale.abs() + math.log(num_classes)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return (self.scale * (_cosines(w, x)[0] + self.bias)).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """With n_c = |w_c| and G = g^T x: pullback(g)_c = scale / n_c (G_c - (G_c . w_c) w_c / n_c^2)."""
        cosine, inverse = _cosines(w, x)

        def pullback(cotangent: Tensor) -> Tensor:
            g = cotangent.mT * (self.scale * inverse)  # on [C, N], which is smaller than [C, D]
            along = (g * cosine).sum(-1, keepdim=True) * inverse  # G_c . w_c / n_c^2, without another pass over D
            return torch.addcmul(unfold_samples(g, x), along, w, value=-1)

        return (self.scale * (cosine + self.bias)).mT, pullback


def _inverse_norm(w: Tensor) -> Tensor:
    """1 / |w_c| [..., C, 1]; 0 for a class without a support point, which has no direction to turn."""
    norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    return norm / (norm.square() + 1e-24)


def _cosines(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """cos(w_c, x_i) [..., T, C, N] for x_i of unit length, and 1 / |w_c| [..., T, C, 1]."""
    if torch.is_grad_enabled() and w.numel() >= LARGE:
        return _Cosines.apply(w, x)
    inverse = _inverse_norm(w)
    return fold_samples(w, x) * inverse, inverse  # w itself is never divided: it is the larger of the two


class _Cosines(torch.autograd.Function):
    """The same, with one gradient for product and norm together, which is the pullback: one pass over w, not four.

    A call costs more than those of autograd's own that it saves, unless w is LARGE.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return _cosines(w, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor, Tensor | None]:
        w, x, cosine, inverse = ctx.saved_tensors
        of_cosine, of_inverse = of_output
        g = of_cosine * inverse
        along = ((g * cosine).sum(-1, keepdim=True) + of_inverse * inverse.square()) * inverse
        of_w = torch.addcmul(unfold_samples(g, x), along, w, value=-1)
        return of_w, samples_summed(g, w) if ctx.needs_input_grad[1] else None


class Linear(Head):
    """logits_ic = scale * (v_c . x_i + b_c), with w_c = (v_c, b_c): VERSA's head, at scale 1.

    The learned scale is the temperature that fixed weights (ProtoNets) need.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def num_weights(self, num_features: int) -> int:
        return num_features + 1  # the bias

    def prototypes(self, means: Tensor) -> Tensor:
        """-|x - m_c|^2 = 2 m_c . x - |m_c|^2 + what is equal for all classes. (Snell et al. 2017)"""
        return torch.cat((2 * means, -means.square().sum(-1, keepdim=True)), dim=-1)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return (self.scale * (fold_samples(w[..., :-1], x) + w[..., -1:])).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """pullback(g)_c = scale * (sum_i g_ic x_i, sum_i g_ic)."""

        def pullback(cotangent: Tensor) -> Tensor:
            g = cotangent.mT
            return self.scale * torch.cat((unfold_samples(g, x), g.sum(-1, keepdim=True)), dim=-1)

        return self.outputs(w, x), pullback
