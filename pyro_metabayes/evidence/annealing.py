"""Annealed importance sampling between a Gaussian proposal and the posterior, in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_metabayes.prediction.averages import log_mean_exp
from pyro_metabayes.seeding import drawing

CHAINS = 16
IMPOSSIBLE = -1e30  # log weight of a chain at which the density is 0 or not a number
MOST_SHRINKS = 40  # largest number of shrinkages of the bracket of a slice; then the chain stays where it is
FIRST_STAGES, MOST_STAGES = 16, 256  # smallest and largest number of steps of the inverse temperature
POWER = 3  # inverse temperatures are (k / stages)^POWER for k = 0, ..., stages: most are near 0, the proposal
EQUILIBRATION = 100  # smallest number of moves at the posterior before the chains return to the proposal

LogWeight = Callable[[Tensor], Tensor]  # log importance weight h(u) [L, T] at u [L, T, P]


def annealed_bounds(log_weight: LogWeight, like: Tensor, stages: int) -> tuple[Tensor, Tensor]:
    """Bound log Z from below and above by annealed importance sampling.

        Z = E_{u ~ N(0, I)}[exp h(u)]
        p_b(u) = N(u; 0, I) exp(b h(u)) / Z_b

    The proposal is p_0 and the posterior p_1. Chains move through p_b by elliptical slice sampling.

    Lower bound: chains from proposal to posterior have an average weight with mean Z (Neal 2001).
    Upper bound: chains from posterior to proposal have an average weight with mean 1 / Z (Grosse, Ghahramani and Adams
    2015). These chains start where the first chains ended, after resampling by weight and further moves. The upper
    bound is valid only if the start points are draws of the posterior.

    Both bounds hold in expectation.

    Args:
        log_weight: the function h from u [L, T, P] to [L, T], for L chains, T tasks and P coordinates.
        like: [T, P], for shape, dtype and device of u.
        stages: number of steps of the inverse temperature b from 0 to 1.

    Returns:
        Lower and upper bound [T], in nats.
    """
    slope = torch.linspace(0, 1, stages + 1, dtype=like.dtype, device=like.device) ** POWER
    with drawing():
        u = torch.randn(CHAINS, *like.shape, dtype=like.dtype, device=like.device)
        h = log_weight(u)
        forward, u, h = _pass(log_weight, u, h, slope)
        logits = forward.mT.nan_to_num(nan=IMPOSSIBLE, neginf=IMPOSSIBLE)
        index = torch.distributions.Categorical(logits=logits).sample((CHAINS,))
        u, h = u.gather(0, index.unsqueeze(-1).expand_as(u)), h.gather(0, index)
        for _ in range(max(EQUILIBRATION, stages)):
            u, h = elliptical_slice(log_weight, u, h, 1.0)
        backward, _, _ = _pass(log_weight, u, h, slope.flip(0))
    return log_mean_exp(forward), -log_mean_exp(backward)


def _pass(log_weight: LogWeight, u: Tensor, h: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move L chains through the inverse temperatures `slope`; return log weights [L, T], final u, and h(u)."""
    total = torch.zeros_like(h)
    for before, after in zip(slope[:-1].tolist(), slope[1:].tolist(), strict=True):
        total = total + (after - before) * h
        u, h = elliptical_slice(log_weight, u, h, after)
    return total, u, h


def elliptical_slice(log_weight: LogWeight, u: Tensor, h: Tensor, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """Make one step of elliptical slice sampling. The step leaves the density N(u; 0, I) exp(b h(u)) invariant.

    (Murray, Adams and MacKay 2010.)

    Args:
        log_weight: the function h.
        u: [L, T, P], current points of L chains for T tasks with P coordinates.
        h: [L, T], values h(u).
        inverse_temperature: the exponent b.

    Returns:
        The next points u, and the values of h there.
    """
    level = inverse_temperature * h + torch.rand_like(h).log()
    other, angle = torch.randn_like(u), 2 * math.pi * torch.rand_like(h)
    low, high = angle - 2 * math.pi, angle
    done, at, h_at = torch.zeros_like(h, dtype=torch.bool), u, h
    for _ in range(MOST_SHRINKS):
        moved = u * angle.cos().unsqueeze(-1) + other * angle.sin().unsqueeze(-1)
        h_moved = log_weight(moved)
        accepted = ~done & (inverse_temperature * h_moved > level)
        at, h_at = torch.where(accepted.unsqueeze(-1), moved, at), torch.where(accepted, h_moved, h_at)
        done = done | accepted
        if bool(done.all()):
            break
        low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
        angle = low + (high - low) * torch.rand_like(h)
    return at, h_at
