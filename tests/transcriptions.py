"""Algorithms of papers on transductive few-shot learning in numpy, for one task. Guides are compared with them.

Every function takes support_x [S, D], support_y [S], query_x [Q, D] and the number of classes C, and returns scores
[Q, C], whose largest is the predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def softmax(logits: Array, axis: int = 1) -> Array:
    exponentials = np.exp(logits - logits.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def squared_distances(x: Array, means: Array) -> Array:
    return np.stack([((x - mean) ** 2).sum(1) for mean in means], axis=1)


def cosines(x: Array, means: Array) -> Array:
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(means, axis=1)[None]
    return x @ means.T / lengths


def support_means(x: Array, y: Array, num_classes: int) -> Array:
    return np.stack([x[y == c].mean(0) for c in range(num_classes)])


def sinkhorn(kernel: Array, rows: Array, columns: Array) -> Array:
    """The plan with these marginals: rows and columns of the kernel are scaled in turn (Cuturi 2013, Algorithm 1)."""
    plan = kernel.copy()
    for _ in range(10_000):
        plan *= (rows / plan.sum(1))[:, None]
        plan *= columns / plan.sum(0)
        if np.abs(plan.sum(1) - rows).max() < 1e-9:
            break
    return plan


def soft_kmeans(
    x: Array, y: Array, queries: Array, num_classes: int, scale: float, num_steps: int, shares: bool
) -> Array:
    """Ren et al. (2018), eq. 3: p_c = (sum_i x_i z_ic + sum_j x_j z_jc) / (sum_i z_ic + sum_j z_jc).

    shares: whether class shares are estimated, as the weights of a mixture are by expectation maximisation.
    """
    means, log_shares = support_means(x, y, num_classes), np.zeros(num_classes)
    for _ in range(num_steps):
        z = softmax(-scale * squared_distances(queries, means) + log_shares)
        log_shares = np.log(z.mean(0)) if shares else log_shares
        means = np.stack(
            [
                (x[y == c].sum(0) + (z[:, c : c + 1] * queries).sum(0)) / ((y == c).sum() + z[:, c].sum())
                for c in range(num_classes)
            ]
        )
    return softmax(-scale * squared_distances(queries, means) + log_shares)


def pt_map(
    x: Array, y: Array, queries: Array, num_classes: int, scale: float, num_steps: int = 30, step_size: float = 0.2
) -> Array:
    """Hu, Gripon and Pateux (2021), Algorithm 1: eq. 5 (Sinkhorn plan), eq. 6 (centres), eq. 7 (step of size alpha)."""

    def plan_at(centres: Array) -> Array:
        columns = np.full(num_classes, len(queries) / num_classes)
        return sinkhorn(np.exp(-scale * squared_distances(queries, centres)), np.ones(len(queries)), columns)

    centres = support_means(x, y, num_classes)
    for _ in range(num_steps):
        plan = plan_at(centres)
        for c in range(num_classes):
            total = (plan[:, c : c + 1] * queries).sum(0) + x[y == c].sum(0)
            centres[c] += step_size * (total / ((y == c).sum() + plan[:, c].sum()) - centres[c])
    return plan_at(centres)


def bd_cspn(
    x: Array,
    y: Array,
    queries: Array,
    num_classes: int,
    most_confident: int = 8,
    sharpness: float = 10.0,
    temperature: float = 10.0,
) -> Array:
    """Liu, Song and Qin (2020): cosine classifier (eq. 2), shift xi (eq. 6), rectified prototypes (eq. 7 and 8)."""
    basic = support_means(x, y, num_classes)
    moved = queries + x.mean(0) - queries.mean(0)
    probs = softmax(temperature * cosines(moved, basic))
    labels, confidence = probs.argmax(1), probs.max(1)
    rectified = []
    for c in range(num_classes):
        own = np.flatnonzero(labels == c)
        chosen = own[np.argsort(-confidence[own])][:most_confident]
        members = np.concatenate([x[y == c], moved[chosen]])
        weights = np.exp(sharpness * cosines(members, basic[c : c + 1]))
        rectified.append((weights / weights.sum() * members).sum(0))
    return softmax(temperature * cosines(moved, np.stack(rectified)))


def laplacian_shot(
    x: Array,
    y: Array,
    queries: Array,
    num_classes: int,
    scale: float,
    smoothness: float,
    num_neighbours: int = 3,
    num_updates: int = 20,
) -> Array:
    """Ziko et al. (2020), Algorithm 1: prototype rectification, kNN affinities, bound updates of eq. 10."""
    basic = support_means(x, y, num_classes)
    moved = queries + x.mean(0) - queries.mean(0)
    points = np.concatenate([x, moved])
    similarity = cosines(points, basic)
    labels, weights = similarity.argmax(1), softmax(10 * similarity)
    means = basic.copy()
    for c in range(num_classes):
        if (labels == c).any():
            means[c] = (weights[labels == c, c : c + 1] * points[labels == c]).mean(0)
    unary = scale * squared_distances(moved, means)
    affinity = np.zeros((len(queries), len(queries)))
    for i, point in enumerate(queries):
        nearest = np.argsort(((queries - point) ** 2).sum(1))
        affinity[i, [j for j in nearest if j != i][:num_neighbours]] = 1
    assignments = softmax(-unary)
    for _ in range(num_updates):
        assignments = softmax(-unary + smoothness * affinity @ assignments)
    return assignments


def balanced_prototypes(x: Array, y: Array, queries: Array, num_classes: int, scale: float) -> Array:
    """Probabilities of the nearest class mean, projected to a uniform class marginal."""
    probs = softmax(-scale * squared_distances(queries, support_means(x, y, num_classes)))
    return sinkhorn(probs, np.ones(len(queries)), np.full(num_classes, len(queries) / num_classes))
