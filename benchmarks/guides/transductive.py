"""Transductive classifiers in raw batched PyTorch, without masks: support [T, C, shot, D], query [T, Q, D] -> logits.

Each function computes what the guide of the same name predicts before training (`tests/test_benchmarks.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

SINKHORN = 20


def distances(m: Tensor, x: Tensor) -> Tensor:
    """Compute -|x - m_c|^2 [T, N, C] of means m [T, C, D] and points x [T, N, D], up to a constant in c."""
    return 2 * (x @ m.mT) - m.square().sum(-1).unsqueeze(1)


def refined(support: Tensor, query: Tensor, z: Tensor) -> Tensor:
    """Compute the means [T, C, D] of the support points and of the queries, the latter weighted by z [T, Q, C]."""
    return (support.sum(2) + z.mT @ query) / (support.shape[2] + z.sum(1).unsqueeze(-1))


def soft_kmeans(support: Tensor, query: Tensor, num_steps: int = 10) -> Tensor:
    m = support.mean(2)
    for _ in range(num_steps):
        m = refined(support, query, distances(m, query).softmax(-1))
    return distances(m, query)


def sinkhorn(logits: Tensor, term: Tensor, iterations: int) -> Tensor:
    """Find the class term [T, 1, C] with which all classes have the same expected number of queries."""
    size, way = logits.shape[1:]
    for _ in range(0, iterations, SINKHORN):
        plan = (logits + term).softmax(-1).mT.contiguous()
        columns = torch.ones_like(term).mT
        for _ in range(SINKHORN):
            columns = (size / way) / (plan @ (1 / (columns.mT @ plan)).mT)
        term = term + columns.mT.log()
    return term - term.mean(-1, keepdim=True)


def pt_map(support: Tensor, query: Tensor, num_steps: int = 30, rate: float = 0.2) -> Tensor:
    m = support.mean(2)
    term = m.new_zeros(len(m), 1, m.shape[1])
    for _ in range(num_steps):
        logits = distances(m, query)
        term = sinkhorn(logits, term, SINKHORN)
        m = m + rate * (refined(support, query, (logits + term).softmax(-1)) - m)
    logits = distances(m, query)
    return logits + sinkhorn(logits, term, 100)


def shifted(support: Tensor, query: Tensor) -> Tensor:
    """Return the support points, then the queries shifted to the mean of the support points [T, S + Q, D]."""
    points = support.flatten(1, 2)
    return torch.cat((points, query + points.mean(1, keepdim=True) - query.mean(1, keepdim=True)), 1)


def laplacian_shot(support: Tensor, query: Tensor, neighbours: int = 3, num_updates: int = 20) -> Tensor:
    points, m = shifted(support, query), support.mean(2)
    cosines = normalize(points, dim=-1) @ normalize(m, dim=-1).mT
    member = one_hot(cosines.argmax(-1), m.shape[1])
    count = member.sum(1).unsqueeze(-1)
    weights = member * (10 * cosines).softmax(-1)
    m = torch.where(count > 0, weights.mT @ points / count.clamp(min=1), m)
    moved = points[:, -query.shape[1] :]
    distance = torch.cdist(query, query, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance + torch.diag(torch.full((query.shape[1],), torch.inf))
    among = (distance <= distance.topk(neighbours, largest=False).values[..., -1:]).to(query)
    logits = distances(m, moved)
    z = logits.softmax(-1)
    for _ in range(num_updates - 1):
        z = (logits + among @ z).softmax(-1)
    return logits + among @ z


def bd_cspn(support: Tensor, query: Tensor, sharpness: float = 10.0, most: int = 8, scale: float = 10.0) -> Tensor:
    points, m = shifted(support, query), support.mean(2)
    cosines = normalize(points, dim=-1) @ normalize(m, dim=-1).mT
    size = support.shape[1] * support.shape[2]
    probs = (sharpness * cosines[:, size:]).softmax(-1)
    confidence = probs * one_hot(probs.argmax(-1), m.shape[1])
    least = confidence.topk(most, dim=1).values[:, -1:]
    labels = torch.eye(m.shape[1]).repeat_interleave(support.shape[2], 0).expand(len(m), -1, -1)
    member = torch.cat((labels, ((confidence >= least) & (confidence > 0)).to(points)), 1)
    weights = (sharpness * (cosines - 1)).exp() * member
    means = normalize(weights.mT @ points, dim=-1)
    return scale * (points[:, size:] @ means.mT)


def tim(support: Tensor, query: Tensor, num_steps: int, alpha: float, marginal: float, tau: float = 15.0) -> Tensor:
    """Take steps of Adam with gradients by autograd. Entropies have the order alpha."""
    labels = torch.eye(support.shape[1]).repeat_interleave(support.shape[2], 0)
    points = support.flatten(1, 2)

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1) if alpha == 1 else (1 - p.pow(alpha).sum(-1)) / (alpha - 1)

    with torch.enable_grad():
        m = support.mean(2).requires_grad_()
        optimiser = torch.optim.Adam([m], lr=1e-4)
        for _ in range(num_steps):
            p = (tau / 2 * distances(m, query)).softmax(-1)
            cross = -((tau / 2 * distances(m, points)).log_softmax(-1) * labels).sum(-1).mean(-1)
            loss = cross - marginal * entropy(p.mean(1)) + entropy(p).mean(1)
            m.grad = torch.autograd.grad(loss.sum(), m)[0]
            optimiser.step()
    return tau / 2 * distances(m.detach(), query)


def paddle(support: Tensor, query: Tensor, num_steps: int = 30, tau: float = 60.0) -> Tensor:
    m = support.mean(2)
    term = m.new_zeros(len(m), 1, m.shape[1])
    for _ in range(num_steps):
        z = (tau / 2 * distances(m, query) + term).softmax(-1)
        term = (z.mean(1, keepdim=True) + 1e-6).log()
        m = refined(support, query, z)
    return tau / 2 * distances(m, query) + term
