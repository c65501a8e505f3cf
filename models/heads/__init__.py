"""Heads: logits from the weights of a task and features, with the closed form of the pullback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_metabayes.errors import UsageError
from pyro_metabayes.specification.recorded import Recorded

Pullback = Callable[[Tensor], Tensor]
UNIT = 0.01  # largest distance of the length of a feature vector from 1, since a backbone may compute in bfloat16
LARGE = 65536  # entries of w from which a custom gradient is faster than autograd


def fold_samples(w: Tensor, x: Tensor) -> Tensor:
    """w_c . x_i for weights [..., T, C, D] and points [T, N, D] -> [..., T, C, N].

    The product is class-major (w @ x^T): the query-major product is a little faster, but its gradient costs five times
    as much. The sample axes are merged with the class axis, so that each task is one matrix
    product [L C, D] x [D, N].
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
    """Logits [..., T, N, C] from weights w [..., T, C, W] and features x [T, N, D]."""

    def num_weights(self, num_features: int) -> int:
        """W, the number of weights of one class, for D features."""
        raise NotImplementedError

    def event_shape(self, num_classes: int, num_features: int) -> Size:
        """The shape of the weights of one task: [C, W]."""
        return Size((num_classes, self.num_weights(num_features)))

    def initial_weights(self, num_classes: int, num_features: int) -> Tensor:
        """Random weights [C, W] of about unit length, as an initial point of guides."""
        num_weights = self.num_weights(num_features)
        return torch.randn(num_classes, num_weights) * num_weights**-0.5

    def prototypes(self, means: Tensor) -> Tensor:
        """Weights [..., C, W] that classify by the nearest of the class means [..., C, D]."""
        raise NotImplementedError

    def loss_range(self, num_classes: int) -> Tensor | None:
        """Length of the interval of the cross-entropy of one point, in nats; None if it is unbounded."""
        return None

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Logits [..., T, N, C]."""
        raise NotImplementedError

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Logits, and the function that maps a cotangent of the logits [..., T, N, C] to one of w."""
        raise NotImplementedError


class Cosine(Head):
    """logits_ic = scale * (cos(w_c, x_i) + bias), with x_i of unit length.

    scale and bias are learned. The softmax does not depend on the bias, but a synthetic-gradient network does.
    (Gidaris and Komodakis 2018; SIB's released code.)

    Args:
        scale: inverse temperature before training.
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
        """2 scale + log C, a bound on log(1 + (C - 1) exp(2 scale)), the largest loss; the smallest is near 0."""
        return 2 * self.scale.abs() + math.log(num_classes)

    def check_features(self, x: Tensor) -> None:
        """Refuse features [N, D] that are not of unit length; a vector of zeros has none and is allowed."""
        length = torch.linalg.vector_norm(x.detach(), dim=-1)
        if ((length - 1).abs() > UNIT).logical_and(length > 0).any():
            raise UsageError(
                f"expected features of unit length for head=cosine, got lengths from {length.min().item():.3g} to "
                f"{length.max().item():.3g}; scale them with torch.nn.functional.normalize, or take head=linear"
            )

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
    """1 / |w_c| [..., C, 1]; 0 for weights 0, those of a class without support points."""
    norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    return norm / (norm.square() + 1e-24)


def _cosines(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """cos(w_c, x_i) [..., T, C, N] for x_i of unit length, and 1 / |w_c| [..., T, C, 1]."""
    if torch.is_grad_enabled() and w.numel() >= LARGE:
        return _Cosines.apply(w, x)
    inverse = _inverse_norm(w)
    return fold_samples(w, x) * inverse, inverse  # w itself is never divided: it is the larger of the two


class _Cosines(torch.autograd.Function):
    """The same, with a joint gradient of product and norm, the pullback: one pass over w instead of four.

    For a w below LARGE the overhead of a Python function exceeds what it saves.
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

    Args:
        scale: inverse temperature before training; learned, since prototypes (ProtoNets) leave it undetermined.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def num_weights(self, num_features: int) -> int:
        return num_features + 1  # the bias

    def prototypes(self, means: Tensor) -> Tensor:
        """-|x - m_c|^2 = 2 m_c . x - |m_c|^2 + a term that is equal for all classes. (Snell et al. 2017)"""
        return torch.cat((2 * means, -means.square().sum(-1, keepdim=True)), dim=-1)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return (self.scale * (fold_samples(w[..., :-1], x) + w[..., -1:])).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """pullback(g)_c = scale * (sum_i g_ic x_i, sum_i g_ic)."""

        def pullback(cotangent: Tensor) -> Tensor:
            g = cotangent.mT
            return self.scale * torch.cat((unfold_samples(g, x), g.sum(-1, keepdim=True)), dim=-1)

        return self.outputs(w, x), pullback
