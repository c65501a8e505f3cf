"""Inner products, labels and class means of a task, computed once for all steps of a transductive classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_metabayes.episodes import Observed, class_means

NUM_FRAME = 3  # statistics of backbone=task_frame
LEAST_LENGTH = 1e-4  # lower bound on the length of a class mean, so that its direction is finite
LEAST_PROBABILITY = 1e-5


@dataclass(frozen=True, eq=False)
class TaskGeometry:
    """Points, labels and inner products of T tasks with features of unit length.

    Attributes:
        x: [T, Q, D], the Q queries, with D features.
        mask: [T, Q], False for masked queries, and for queries of zeros, which have no direction.
        shares: [T, Q], weight of each query in a mean over the unmasked queries.
        labels: [T, S, C], one-hot labels of the S support points for C classes, 0 for masked points.
        means: [T, C, D], class means of the support set.
        counts: [T, C], number of support points of each class.
        inner: [T, Q, S + Q], inner products of the queries with all points; support points come first.
    """

    x: Tensor
    mask: Tensor
    shares: Tensor
    labels: Tensor
    means: Tensor
    counts: Tensor
    inner: Tensor

    @classmethod
    def of(cls, observed: Observed) -> Self:
        x = observed.query_x
        mask = observed.query_mask & (x != 0).any(-1)
        labels = support_labels(observed)
        return cls(
            x=x,
            mask=mask,
            shares=(mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(x.dtype),
            labels=labels,
            means=class_means(observed),
            counts=labels.sum(1),
            inner=x @ torch.cat((observed.support_x, x), 1).mT,
        )

    @property
    def between(self) -> Tensor:
        """Inner products [T, Q, Q] between the queries of each task."""
        return self.inner[..., self.labels.shape[1] :]

    def mean(self, values: Tensor) -> Tensor:
        """Average values over the unmasked queries of each task.

        Args:
            values: [T, Q, V], V values per query.

        Returns:
            Tensor [T, 1, V].
        """
        return self.shares.unsqueeze(1) @ values

    def cosines(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the cosines of the queries with class means, and the lengths of the class means.

        Args:
            means: [T, C, D], class means.

        Returns:
            Cosines [T, Q, C] and lengths [T, C].
        """
        length = means.norm(dim=-1).clamp(min=LEAST_LENGTH)
        return self.x @ means.mT / length.unsqueeze(1), length

    def affinities(self, sharpness: Tensor) -> Tensor:
        """Compute the affinities of each query to all other points of the task.

        The affinities are a softmax, over the other points, of sharpness times the inner product with the query.

        Args:
            sharpness: [T, 1, 1], inverse temperature of each task.

        Returns:
            Tensor [T, Q, S + Q]; support points come first.
        """
        size = self.mask.shape[1]
        own = torch.eye(size, dtype=torch.bool, device=self.x.device)
        other = torch.cat(((self.labels.sum(-1) > 0).unsqueeze(1).expand(-1, size, -1), self._others(own)), -1)
        return (sharpness * self.inner).masked_fill(~other, -torch.inf).softmax(-1)

    def _others(self, own: Tensor) -> Tensor:
        return self.mask.unsqueeze(1) & ~own

    def log_labels_nearby(self, affinities: Tensor, assignments: Tensor) -> Tensor:
        """Compute the log of the mean label of all other points, weighted by the affinities to a query.

        Args:
            affinities: [T, Q, S + Q], the result of `affinities`.
            assignments: [T, Q, C], soft assignments of the queries to classes, used as labels of the queries.

        Returns:
            Tensor [T, Q, C].
        """
        return (affinities @ torch.cat((self.labels, assignments), 1)).clamp(min=LEAST_PROBABILITY).log()


def cosines_without(x: Tensor, inner: Tensor, lengths: Tensor, own: Tensor) -> Tensor:
    """Compute the cosines [T, N, C] of each point with the class means m_c, computed without this point.

    Without point x, the class mean has the direction of m_c - own_c x.

    Args:
        x: [T, N, D], points.
        inner: [T, N, C], inner products of the points with the class means.
        lengths: [T, C], lengths of the class means.
        own: [T, N, C], coefficient of each point in the class means; 0 if the mean does not contain the point.
    """
    square = x.square().sum(-1, keepdim=True)
    rest = lengths.square().unsqueeze(1) - own * (2 * inner - own * square)
    return (inner - own * square) * rest.clamp(min=LEAST_LENGTH**2).rsqrt()


def support_labels(observed: Observed) -> Tensor:
    """Return one-hot labels [T, S, C] of the support points; 0 for masked points."""
    labels = one_hot(observed.support_y, observed.num_classes) * observed.support_mask.unsqueeze(-1)
    return labels.to(observed.support_x.dtype)


def frame_statistics(observed: Observed) -> Tensor:
    """Return the statistics of each task from backbone=task_frame; 0 with another backbone.

    Returns:
        Tensor [T, NUM_FRAME], NUM_FRAME statistics for each of T tasks.
    """
    frame = observed.auxiliary.get("frame")
    return observed.query_x.new_zeros(observed.num_tasks, NUM_FRAME) if frame is None else frame
