"""Temperature scaling of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-2, 1e2  # inverse temperatures that are searched
HALVINGS = 60
LEAST_LOG_PROB = -1e4  # lower bound on log probabilities, for classes whose probability is 0 in floating point


def scaled(log_probs: Tensor, temperature: float) -> Tensor:
    """Compute log p_T(c) for the tempered probabilities p_T(c) = p(c)^(1/T) / sum_k p(k)^(1/T) (Guo et al. 2017).

    Args:
        log_probs: log p(c) of C classes [..., C], in nats.
        temperature: T.

    Returns:
        Tensor [..., C], in nats.
    """
    return (log_probs.clamp(min=LEAST_LOG_PROB) / temperature).log_softmax(-1)


def fitted_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """Find the temperature T that minimises the NLL of the tempered probabilities p_i(c)^(1/T) / sum_k p_i(k)^(1/T).

    The NLL is convex in b = 1/T, with the derivative

        mean_i (E[log p_i(c)] - log p_i(y_i)),

    where E is the expectation over c under the tempered probabilities. Bisection finds the zero of the derivative.

    Args:
        log_probs: log p_i(c) [N, C] of N queries i of validation tasks and C classes c, in nats.
        labels: classes y_i of the queries [N].

    Returns:
        T, from 0.01 to 100. Reading this float synchronises with the device.
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
