"""Heads with closed-form gradients. A head computes logits from features and the weights of a task."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.models.heads.head import Head, Outputs, Pullback
from pyro_metabayes.models.parts.cosines import cosines, inverse_norm, inverse_norms_of_draws
from pyro_metabayes.models.parts.fixed_weights import LogitsOfSquare, LogitsOfWeights
from pyro_metabayes.models.parts.products import fold_samples, unfold_samples
from pyro_metabayes.models.parts.unit_features import refuse_one_direction, refuse_other_lengths

__all__ = ["Cosine", "CosineOffset", "Head", "Linear", "Outputs", "Pullback"]


class Cosine(Head):
    """Cosine head: logits_ic = scale * (cos(w_c, x_i) + bias) for class weights w_c and features x_i of unit length.

    scale and bias are learned. The softmax does not depend on the bias, but the input of a synthetic-gradient network
    does. (Gidaris and Komodakis 2018; SIB's released code.)

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
        """Return 2 scale + log C for C classes, a bound on the largest loss; the smallest loss is near 0.

        The largest cross-entropy of a point is log(1 + (C - 1) exp(2 scale)), in nats.
        """
        return 2 * self.scale.abs() + math.log(num_classes)

    def check_features(self, x: Tensor, learned: bool) -> None:
        """Raise a UsageError if feature vectors x [N, D] do not have unit length, or all have the same direction.

        Rows of zeros are allowed, since a backbone may end in a ReLU. Rows that are not finite are ignored. The
        direction is not checked for learned features (`learned`).
        """
        refuse_other_lengths(x)
        if not learned:
            refuse_one_direction(x)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return (self.scale * (cosines(w, x)[0] + self.bias)).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the logits and their vector-Jacobian product with respect to w.

        For a cotangent g, with n_c = |w_c| and G_c = sum_i g_ic x_i,

            pullback(g)_c = scale / n_c (G_c - (G_c . w_c) w_c / n_c^2).
        """
        cosine, inverse = cosines(w, x)

        def pullback(cotangent: Tensor) -> Tensor:
            g = cotangent.mT * (self.scale * inverse)  # scales [C, N], which is smaller than [C, D]
            along = (g * cosine).sum(-1, keepdim=True) * inverse  # G_c . w_c / n_c^2, without another pass over D
            return torch.addcmul(unfold_samples(g, x), along, w, value=-1)

        return (self.scale * (cosine + self.bias)).mT, pullback

    def outputs_at(self, w: Tensor) -> Outputs:
        return self._outputs_at(w, self.scale * self.bias)

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """Override `Head.outputs_of_draws`: the function multiplies x with loc and noise vectors, not with draws."""
        return self._outputs_of_draws(loc, noise, square, self.scale * self.bias)

    def _outputs_at(self, v: Tensor, offsets: Tensor) -> Outputs:
        return LogitsOfWeights.of(self.scale * inverse_norm(v) * v, offsets)

    def _outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare, offsets: Tensor) -> Outputs:
        return LogitsOfSquare.of(square, loc, noise, self.scale * inverse_norms_of_draws(loc, noise, square), offsets)


class CosineOffset(Cosine):
    """Cosine head with a term b_c per class: logits_ic = scale * (cos(v_c, x_i) + bias + b_c).

    The weights of class c are w_c = (v_c, b_c). x_i are features of unit length. Weights from class means (prototypes)
    have b_c = 0. The arguments are those of `Cosine`.
    """

    has_class_term = True

    def num_weights(self, num_features: int) -> int:
        return num_features + 1

    def prototypes(self, means: Tensor) -> Tensor:
        return functional.pad(means, (0, 1))

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        return _with_last(w, term / self.scale)

    def loss_range(self, num_classes: int) -> None:  # type: ignore[override]
        """Return None: the loss is unbounded, because the terms b_c are unbounded."""

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return super().outputs(w[..., :-1], x) + self.scale * w[..., -1:].mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the logits, and their vector-Jacobian product with respect to w = (v, b).

        For a cotangent g, the part for v_c is that of the head `Cosine`. The part for b_c is scale * sum_i g_ic.
        """
        logits, of_cosine = super().outputs_and_pullback(w[..., :-1], x)

        def pullback(cotangent: Tensor) -> Tensor:
            return torch.cat((of_cosine(cotangent), self.scale * cotangent.sum(-2).unsqueeze(-1)), dim=-1)

        return logits + self.scale * w[..., -1:].mT, pullback

    def outputs_at(self, w: Tensor) -> Outputs:
        return self._outputs_at(w[..., :-1], self.scale * (self.bias + w[..., -1:]))

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        terms = loc[:, None, None, :, -1:] + square.odd(noise[..., -1:])
        return self._outputs_of_draws(loc[..., :-1], noise[..., :-1], square, self.scale * (self.bias + terms))


def _with_last(w: Tensor, term: Tensor) -> Tensor:
    """Add term [..., C], one number per class, to the last weight of each of C classes in w [..., C, W]."""
    return torch.cat((w[..., :-1], w[..., -1:] + term.unsqueeze(-1)), dim=-1)


class Linear(Head):
    """Linear head: logits_ic = scale * (v_c . x_i + b_c) for features x_i and weights w_c = (v_c, b_c) of class c.

    With scale 1 this is VERSA's head.

    Args:
        scale: inverse temperature before training. It is learned, since class means (ProtoNets) do not determine it.
    """

    has_class_term = True

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def num_weights(self, num_features: int) -> int:
        return num_features + 1  # the bias

    def prototypes(self, means: Tensor) -> Tensor:
        """Return v_c = 2 m_c, b_c = -|m_c|^2 for class means m_c (Snell et al. 2017).

        The logits are then -|x - m_c|^2 up to a term common to all classes.
        """
        return self.rows(2 * means, -means.square().sum(-1))

    def rows(self, directions: Tensor, offsets: Tensor) -> Tensor:
        """Combine directions v [..., C, D] and offsets b [..., C] of C classes to weights w_c = (v_c, b_c)."""
        return torch.cat((directions, offsets.unsqueeze(-1)), dim=-1)

    def design(self, x: Tensor) -> Tensor:
        """Return phi_i = scale * (x_i, 1) [..., N, D + 1] for N points of D features; logits_ic = w_c . phi_i."""
        return self.scale * torch.cat((x, torch.ones_like(x[..., :1])), dim=-1)

    def with_class_term(self, w: Tensor, term: Tensor) -> Tensor:
        return _with_last(w, term / self.scale)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return (self.scale * (fold_samples(w[..., :-1], x) + w[..., -1:])).mT

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
        """Compute the logits and their vector-Jacobian product.

        For a cotangent g, pullback(g)_c = scale * (sum_i g_ic x_i, sum_i g_ic).
        """

        def pullback(cotangent: Tensor) -> Tensor:
            g = cotangent.mT
            return self.scale * torch.cat((unfold_samples(g, x), g.sum(-1, keepdim=True)), dim=-1)

        return self.outputs(w, x), pullback

    def outputs_at(self, w: Tensor) -> Outputs:
        return LogitsOfWeights.of(self.scale * w[..., :-1], self.scale * w[..., -1:])

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Outputs:
        """Override `Head.outputs_of_draws`: the function multiplies x with loc and noise vectors, not with draws."""
        terms = loc[:, None, None, :, -1:] + square.odd(noise[..., -1:])
        return LogitsOfSquare.of(square, loc[..., :-1], noise[..., :-1], self.scale, self.scale * terms)
