"""Convergence of Markov chains: rank-normalised split R-hat, bulk and tail effective sample size.

All functions take draws x [chains, L, ...], with L draws per chain. The diagnostics equal those of ArviZ. (Vehtari et
al. 2021, "Rank-normalization, folding, and localization: an improved R-hat".)
"""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import effective_sample_size, gelman_rubin
from torch import Tensor

CONVERGED_R_HAT = 1.01
SUFFICIENT_SIZE = 400  # bulk and tail effective sample size of reliable diagnostics, for four chains
TAILS = (0.05, 0.95)


def r_hat(x: Tensor) -> Tensor:
    """Compute R-hat [...] of draws x [chains, draws, ...]: the larger R-hat of the chains and of the folded chains.

    Chains are split and rank-normalised. Folding replaces a draw by its distance to the median.
    """
    chains = _split(x)
    folded = (chains - chains.flatten(0, 1).median(0).values).abs()
    return torch.maximum(*(gelman_rubin(_rank_normalised(values), 0, 1) for values in (chains, folded)))


def bulk_size(x: Tensor) -> Tensor:
    """Compute the bulk effective sample size [...] (for means and medians) of draws x [chains, draws, ...]."""
    return _effective_size(_rank_normalised(_split(x)))


def tail_size(x: Tensor) -> Tensor:
    """Compute the tail effective sample size [...] of draws x [chains, draws, ...].

    The result is the smaller of two effective sample sizes: of the 5% quantile and of the 95% quantile.
    """
    ordered = x.flatten(0, 1).sort(0).values  # torch.quantile refuses many weights
    quantiles = (ordered[round(level * (len(ordered) - 1))] for level in TAILS)
    sizes = [_effective_size(_split((x <= quantile).to(x.dtype))) for quantile in quantiles]
    return torch.minimum(*sizes)


def _split(x: Tensor) -> Tensor:
    """Split each chain of draws [chains, draws, ...] into two halves, without the middle draw of an odd number."""
    half = x.shape[1] // 2
    return torch.cat((x[:, :half], x[:, x.shape[1] - half :]))


def _rank_normalised(x: Tensor) -> Tensor:
    """Replace each of the S draws of all chains by the normal score Phi^-1((rank - 3/8) / (S + 1/4)). (Blom 1958.)"""
    flat = x.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0) + 1
    return torch.special.ndtri((ranks.to(x.dtype) - 0.375) / (len(flat) + 0.25)).view(x.shape)


def _effective_size(x: Tensor) -> Tensor:
    """Compute the effective sample size of S draws, at most S log10 S; larger than S for anticorrelated draws."""
    num_draws = x.shape[0] * x.shape[1]
    most = num_draws * math.log10(num_draws)
    size = effective_sample_size(x, 0, 1)
    return torch.where((size > 0) & (size < most), size, most)
