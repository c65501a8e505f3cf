"""Temperature scaling of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-2, 1e2  # inverse temperatures that are searched
HALVINGS = 60
LEAST_LOG_PROB = -1e4  # of a class whose probability is 0 in floating point


def scaled(log_probs: Tensor, temperature: float) -> Tensor:
    """log p_T(c) with p_T(c) proportional to p(c)^(1/T), for log p [..., C] in nats. (Guo et al. 2017)"""
    return (log_probs.clamp(min=LEAST_LOG_PROB) / temperature).log_softmax(-1)


def fitted_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature of the smallest NLL, by bisection of its derivative.

    The NLL is convex in b = 1/T, with the derivative mean_i (E_{p_b}[log p_i(c)] - log p_i(y_i)), which increases in b.

    Args:
        log_probs: log p_i(c) [N, C] of queries of validation tasks, in nats.
        labels: y [N], classes.

    Returns:
        T, between 0.01 and 100, read on the host.
    """
    log_probs = log_probs.double().clamp(min=LEAST_LOG_PROB)
    of_labels = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    low, high = torch.tensor(SMALLEST).double().log(), torch.tensor(LARGEST).double().log()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = ((middle.exp() * log_probs).softmax(-1) * log_probs).sum(-1)
        too_small = (expected - of_labels).mean() < 0
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return (-(low + high) / 2).exp().item()
