"""Sinkhorn's projection of class predictions to given class shares, by a term added to the logits.

Sinkhorn and Knopp 1967; Cuturi, "Sinkhorn Distances", NeurIPS 2013 (arXiv 1306.0895).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.inference.cholesky import cholesky
from pyro_metabayes.transductive.assignments import masked_mean

RIDGE = 1e-4  # added to the matrix J of `_with_gradient`, since J is 0 for predictions that are certain
LEAST = 1e-30  # lower bound on sums of a plan, so that their reciprocals are finite
BEFORE_LOGARITHM = 20  # number of iterations after which the logarithms of the class factors are added to b


def class_term(
    logits: Tensor,
    mask: Tensor,
    shares: Tensor | None = None,
    num_iterations: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    """Compute the class term b for which the mean prediction of the queries equals given class shares.

        equation:  (1/Q) sum_i softmax(logits_i + b)_c = shares_c
        iteration: b <- b + log shares - log (1/Q) sum_i softmax(logits_i + b)

    b has mean 0 over the classes. The probabilities softmax(logits + b) are a transport plan with one unit per query
    and Q shares_c units per class. The gradient of b follows from the equation (implicit function theorem), not from
    the iterations.

    Args:
        logits: [..., T, Q, C], logits of C classes for Q queries of T tasks.
        mask: [T, Q]; masked queries have no effect, and b = 0 without queries.
        shares: given mean prediction of each class, positive with sum 1, broadcast to [..., T, 1, C]; None: 1 / C.
        num_iterations: number of iterations. After 100 iterations, shares are accurate to 1e-4. Nearly certain
            predictions need more iterations.
        start: value of b before the first iteration; None: 0.

    Returns:
        The class term b [..., T, 1, C].
    """
    if shares is None:
        shares = logits.new_full((logits.shape[-1],), 1 / logits.shape[-1])
    solution = _iterate(logits.detach(), mask, shares.detach(), num_iterations, start)
    return _with_gradient(solution, logits, mask, shares) if torch.is_grad_enabled() else solution


@torch.no_grad()
def _iterate(logits: Tensor, mask: Tensor, shares: Tensor, num_iterations: int, start: Tensor | None) -> Tensor:
    """Run Sinkhorn's iterations on transport plans [..., T, C, Q], and return the class term.

    An iteration computes a factor of each class in a plan. Every 20 iterations, the logarithms of the factors are added
    to the class term, and the factors are reset to 1. This prevents overflow.
    """
    term = logits.new_zeros(*logits.shape[:-2], 1, logits.shape[-1]) if start is None else start.detach()
    there, count = mask.unsqueeze(-1), mask.sum(-1)[:, None, None]
    columns = (count * shares).mT  # [T, C, 1]
    logits = logits.masked_fill(~there, 0.0)  # masked points may have any value
    while num_iterations > 0:
        plan = ((logits + term).softmax(-1) * there).mT.contiguous()  # [..., T, C, Q], the faster order
        scaling = torch.ones_like(term).mT
        for _ in range(min(num_iterations, BEFORE_LOGARITHM)):
            rows = (scaling.mT @ plan).clamp(min=LEAST).reciprocal()
            scaling = columns / (plan @ rows.mT).clamp(min=LEAST)
        term = term + scaling.mT.clamp(min=LEAST).log()
        num_iterations -= BEFORE_LOGARITHM
    return torch.where(count > 0, term - term.mean(-1, keepdim=True), 0.0)


def _with_gradient(solution: Tensor, logits: Tensor, mask: Tensor, shares: Tensor) -> Tensor:
    """Attach a gradient to the solution b of m(b) = shares, where m(b) is the mean prediction of the queries.

        db = J^-1 (d shares - dm),   J = dm / db

    by the implicit function theorem.
    """
    probs = (logits + solution).softmax(-1)
    marginal = masked_mean(probs, mask)
    p = probs.detach()
    weight = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(p.dtype).unsqueeze(-1)
    classes = p.shape[-1]
    ridge = RIDGE * torch.eye(classes, dtype=p.dtype, device=p.device) + classes**-2  # J is singular
    curvature = torch.diag_embed((p * weight).sum(-2)) - (p * weight).mT @ p + ridge
    excess = shares - marginal
    change = torch.cholesky_solve((excess - excess.detach()).mT, cholesky(curvature)).mT
    return solution + torch.where(mask.any(-1)[:, None, None], change, 0.0)
