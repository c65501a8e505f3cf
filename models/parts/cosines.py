"""Cosines between weights and features, with a custom gradient for large weight tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.models.parts.products import fold_samples, samples_summed, unfold_samples

LARGE = 65536  # number of entries of w from which a custom gradient is faster than autograd


def inverse_norm(w: Tensor) -> Tensor:
    """Compute 1 / |w_c| for weights w of C classes [..., C, 1]; 0 if w_c = 0, as for a class without support points."""
    norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    return norm / (norm.square() + 1e-24)


def cosines(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cosines cos(w_c, x_i), and 1 / |w_c|.

    Args:
        w: weights of C classes for D features in T tasks [..., T, C, D].
        x: N points of unit length per task [T, N, D].

    Returns:
        Cosines [..., T, C, N] and inverse norms [..., T, C, 1].
    """
    if torch.is_grad_enabled() and w.numel() >= LARGE:
        return Cosines.apply(w, x)
    inverse = inverse_norm(w)
    return fold_samples(w, x) * inverse, inverse  # scales the product, which is smaller than w


def inverse_norms_of_draws(loc: Tensor, noise: Tensor, square: LatinSquare) -> Tensor:
    """Compute 1 / |w_c| for P pairs of draws w_c = loc_c +- noise_m that share noise vectors (`LatinSquare`).

    |w_c|^2 = |loc_c|^2 +- 2 loc_c . noise_m + |noise_m|^2.

    Args:
        loc: means of W weights for each of C classes in T tasks [T, C, W].
        noise: M noise vectors per task [T, G, M, W], with G = 1 (the same for all classes) or C.
        square: says which noise vector m each class has in each pair.

    Returns:
        Tensor [T, 2, P, C, 1], for both signs, T tasks and C classes.
    """
    inner = loc @ noise[:, 0].mT if noise.shape[1] == 1 else (noise @ loc.unsqueeze(-1)).squeeze(-1)  # [T, C, M]
    even = loc.square().sum(-1, keepdim=True) + noise.square().sum(-1)
    signs = 2 * square.signs(loc).squeeze(-1)
    squares = torch.addcmul(even.unsqueeze(1), inner.unsqueeze(1), signs).clamp_(min=0)  # [T, 2, C, M]
    return square.by_pair((squares.sqrt() / (squares + 1e-24)).unsqueeze(-1))


class Cosines(torch.autograd.Function):
    """Autograd function of `cosines` with one gradient for product and norm together.

    The gradient reads w once instead of four times. `cosines` uses this function for w of at least LARGE entries. For
    smaller w, the overhead of a Python function exceeds the time saved.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return cosines(w, x)

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
