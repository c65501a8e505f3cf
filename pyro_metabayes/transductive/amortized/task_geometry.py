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
    """Points, labels and inner products of T tasks: S support points, Q queries, C classes, D features of unit length.

    Attributes:
        x: queries [T, Q, D].
        mask: [T, Q], False for masked queries.
        shares: weight of each query in a mean over the queries [T, Q].
        labels: one-hot labels of the support points [T, S, C], 0 for masked points.
        means: class means of the support set [T, C, D].
        counts: number of support points of each class [T, C].
        inner: inner products of the queries with all points, support points first [T, Q, S + Q].
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
        x, mask = observed.query_x, observed.query_mask
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
        """Inner products between the Q queries of each of T tasks [T, Q, Q]."""
        return self.inner[..., self.labels.shape[1] :]

    def mean(self, values: Tensor) -> Tensor:
        """Average values over the unmasked queries of each task.

        Args:
            values: V values for each of Q queries of T tasks [T, Q, V].

        Returns:
            Tensor [T, 1, V].
        """
        return self.shares.unsqueeze(1) @ values

    def cosines(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the cosines of the queries with class means, and the lengths of the class means.

        Args:
            means: class means of C classes in T tasks, with D features [T, C, D].

        Returns:
            Cosines [T, Q, C] for Q queries, and lengths [T, C].
        """
        length = means.norm(dim=-1).clamp(min=LEAST_LENGTH)
        return self.x @ means.mT / length.unsqueeze(1), length

    def affinities(self, sharpness: Tensor) -> Tensor:
        """Compute the affinities of each query to all other points of its task.

        They are a softmax over these points of sharpness times the inner product with the query.

        Args:
            sharpness: inverse temperature of each of T tasks [T, 1, 1].

        Returns:
            Tensor [T, Q, S + Q] for Q queries; the S support points come first.
        """
        size = self.mask.shape[1]
        own = torch.eye(size, dtype=torch.bool, device=self.x.device)
        other = torch.cat(((self.labels.sum(-1) > 0).unsqueeze(1).expand(-1, size, -1), self._others(own)), -1)
        return (sharpness * self.inner).masked_fill(~other, -torch.inf).softmax(-1)

    def _others(self, own: Tensor) -> Tensor:
        return self.mask.unsqueeze(1) & ~own

    def log_labels_nearby(self, affinities: Tensor, assignments: Tensor) -> Tensor:
        """Average the labels of all other points, weighted by their affinities to a query, and return the logarithm.

        Args:
            affinities: the result of `affinities`, [T, Q, S + Q].
            assignments: soft assignments of Q queries to C classes [T, Q, C], used as labels of the queries.

        Returns:
            Tensor [T, Q, C].
        """
        return (affinities @ torch.cat((self.labels, assignments), 1)).clamp(min=LEAST_PROBABILITY).log()


def support_labels(observed: Observed) -> Tensor:
    """Return one-hot labels of S support points for C classes in T tasks [T, S, C]; 0 for masked points."""
    labels = one_hot(observed.support_y, observed.num_classes) * observed.support_mask.unsqueeze(-1)
    return labels.to(observed.support_x.dtype)


def frame_statistics(observed: Observed) -> Tensor:
    """Return the statistics that backbone=task_frame computed for each task; 0 with another backbone.

    Returns:
        Tensor [T, NUM_FRAME], NUM_FRAME statistics for each of T tasks.
    """
    frame = observed.auxiliary.get("frame")
    return observed.query_x.new_zeros(observed.num_tasks, NUM_FRAME) if frame is None else frame
