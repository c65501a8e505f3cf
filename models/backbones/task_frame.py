"""A backbone that centres, normalises and partly whitens the points of a task together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.cholesky import cholesky
from pyro_metabayes.models.parts.support_frame import Coordinates, SupportFrame
from pyro_metabayes.prediction.scale import unit_length

Data = TypeVar("Data", bound=Observed)

JITTER = 1e-4  # added to the unit diagonal of a kernel matrix, whose rank may be less than its size


class Backbone(pyro_metabayes.Backbone):
    """Backbone that transforms the points of a task relative to M reference points of the task, without their labels.

    The inputs are feature vectors of any number D of features. Three quantities are computed in turn:

        u_i = inputs scaled to unit length,
        mu  = mean of u_i over the reference points (for points=support, times a learned factor M / (M + tau)),
        x_i = u_i - mu scaled to unit length.

    X [M, D] holds the x_i of the reference points. The transformed features have the inner products

        k(x_i, x_j) = (1 - a) x_i . x_j + a kappa(x_i, x_j).

    kappa is x_i . (X^T X + lambda I)^-1 x_j, normalised so that kappa(x_i, x_i) = 1. kappa gives directions of large
    variance less weight (regularised whitening). a and lambda are learned functions of M and of the effective dimension
    of X, 1 / mean_ij (x_i . x_j)^2. An input of zeros has features 0 and no effect on the features of the other points.

    The T tasks also get the tensor auxiliary["frame"] [T, 3]. The columns are log(D / 128), the length of the mean of
    u_i, and log(effective dimension / 10).

    No parameter depends on D. So a learner with this backbone accepts features of any kind. A task of N points has N
    transformed features if 2 D >= N, and 2 D otherwise. For points=support and 2 D < N, there are S + 1 more, where S
    is the number of support points.

    Args:
        input_shape: [D], or [None] for any D.
        points: the reference points.
            `all`: all points of the task.
            `support`: the support set. Predictions for a query then do not depend on other queries.
        width: width of the hidden layer of the network that computes a and lambda.

    Raises:
        UsageError: the inputs are not features, or `points` has another value.
    """

    num_features = None  # the number of features depends on the task

    def __init__(self, input_shape: tuple[int | None, ...], points: str = "all", width: int = 16) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise UsageError(
                f"expected features [D] for backbone=task_frame, got inputs of shape {list(input_shape)}; extract "
                "features first"
            )
        check_choice("backbone.points", points, ("all", "support"))
        self.points = points
        self.log_tau = nn.Parameter(torch.tensor(1.0)) if points == "support" else None
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(torch.tensor([-1.0, 0.5]))
        self.network = nn.Sequential(nn.Linear(3, width), nn.Tanh(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Scale feature vectors to unit length; `embed_tasks` does the transformation that depends on the task."""
        return unit_length(x)

    def embed_tasks(self, data: Data) -> Data:
        """Return the tasks with transformed features. Labels are not used."""
        seen = data.seen_queries
        queries = seen if self.points == "all" else torch.zeros_like(seen)
        x = self(torch.cat((data.support_x, data.query_x), 1))
        directed = (x != 0).any(-1)
        reference = (torch.cat((data.support_mask, queries), 1) & directed).to(x.dtype).unsqueeze(-1)
        mask = (torch.cat((data.support_mask, seen), 1) & directed).unsqueeze(-1)
        count, mean, shrunk = self._centre(x, reference)
        x = functional.normalize(x - shrunk, dim=-1) * mask
        wide = 2 * x.shape[-1] >= x.shape[1]
        gram = x @ x.mT if wide else (reference * x).mT @ x
        inner = reference.mT * reference * gram if wide else gram  # of the reference points
        effective = _effective(count, inner)
        settings = self._settings(count, effective)
        support = data.support_x.shape[1]
        features = self._dual(gram, reference, settings, mask) if wide else self._primal(x, gram, settings)
        if not wide and self.points == "support":
            features = torch.cat((features, _jitter_of_dual(support, mask)), -1)
        parts: dict[str, Any] = {"support_x": features[:, :support], "query_x": features[:, support:]}
        frame = _statistics(x.shape[-1], mean, effective)
        return replace(data, **parts, auxiliary=data.auxiliary | {"frame": frame})

    def support_frame(self, data: Observed) -> SupportFrame | None:
        """Encode the support sets, and return an encoder of the queries.

        The encoder returns the features of `embed_tasks` up to a rotation of the feature space. For points=all this
        method returns None, since features then depend on all queries of a task.
        """
        if self.points == "all":
            return None
        x = self(data.support_x)
        mask = (data.support_mask & (x != 0).any(-1)).to(x.dtype).unsqueeze(-1)
        count, mean, shrunk = self._centre(x, mask)
        x = functional.normalize(x - shrunk, dim=-1) * mask
        gram = x @ x.mT
        effective = _effective(count, gram)
        frame = _statistics(x.shape[-1], mean, effective)
        coordinates = Coordinates(x, gram, self._settings(count, effective), mask, JITTER)
        return SupportFrame(self, data, coordinates, shrunk, frame)

    def _centre(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return number [T, 1, 1] and mean [T, 1, D] of the reference points, and the vector to subtract [T, 1, D].

        The shapes are for T tasks with D features.
        """
        count = reference.sum(1, keepdim=True).clamp(min=1)
        mean = (reference * x).sum(1, keepdim=True) / count
        return count, mean, mean if self.log_tau is None else mean * count / (count + self.log_tau.exp())

    @staticmethod
    def _primal(x: Tensor, gram: Tensor, settings: tuple[Tensor, Tensor]) -> Tensor:
        share, ridge = settings
        factor = cholesky(gram + ridge * _identity(gram))
        white = functional.normalize(torch.linalg.solve_triangular(factor, x.mT, upper=False).mT, dim=-1)
        return torch.cat(((1 - share).sqrt() * x, share.sqrt() * white), -1)

    @staticmethod
    def _dual(gram: Tensor, reference: Tensor, settings: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Compute N features of each of N points for 2 D >= N, from the matrix g of inner products of the points.

        With R for the indices of the reference points, x_i . (X^T X + lambda I)^-1 x_j equals
        (g_ij - g_iR (g_RR + lambda I)^-1 g_Rj) / lambda.
        """
        share, ridge = settings
        to_reference = reference * gram  # rows of other points are 0
        factor = cholesky(reference.mT * to_reference + ridge * _identity(gram))
        white = gram - to_reference.mT @ torch.cholesky_solve(to_reference, factor)
        length = white.diagonal(dim1=-2, dim2=-1).clamp(min=1e-8).rsqrt()
        white = white * length.unsqueeze(-1) * length.unsqueeze(-2)
        kernel = (1 - share) * gram + share * (white + white.mT) / 2
        jitter = JITTER + 1 - mask.squeeze(-1).to(gram.dtype)  # masked points have a row of zeros
        return cholesky(kernel + torch.diag_embed(jitter)) * mask

    def _settings(self, count: Tensor, effective: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the parameters a and lambda of the kernel of each of T tasks [T, 1, 1].

        lambda is a learned multiple of M / (effective dimension). M is the sum of the eigenvalues of X^T X.
        """
        statistics = torch.cat(((count / 100).log(), (effective / 10).log(), (2 * effective / count).log()), -1)
        share, ridge = self.network(statistics).split(1, -1)
        return share.sigmoid(), count / effective * ridge.exp()


def _effective(count: Tensor, inner: Tensor) -> Tensor:
    """Compute the effective dimension of the reference points of T tasks [T, 1, 1] from their inner products."""
    return count.square() / inner.square().sum((1, 2), keepdim=True).clamp(min=1e-12)


def _statistics(num_features: int, mean: Tensor, effective: Tensor) -> Tensor:
    """Compute the statistics auxiliary["frame"] [T, 3] of T tasks."""
    dimension = torch.full_like(effective, math.log(num_features / 128))
    return torch.cat((dimension, mean.norm(dim=-1, keepdim=True), (effective / 10).log()), -1).squeeze(1)


def _jitter_of_dual(num_support: int, mask: Tensor) -> Tensor:
    """Return S + 1 extra features of each point, for S support points.

    The extra features add jitter to the inner product of a support point with itself, and to the inner products between
    queries. The number of extra features does not depend on the number of queries.
    """
    own = torch.arange(mask.shape[1], device=mask.device).clamp(max=num_support)
    return JITTER**0.5 * functional.one_hot(own, num_support + 1) * mask


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
