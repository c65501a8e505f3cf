"""The likelihood under draws of w, without the draws where the model can do without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.moments import draws_of


@runtime_checkable
class DrawsOutputs(Protocol):
    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare, x: Tensor) -> Tensor:
        """outputs(w, x) [L, T, N, *Y] under the draws of a Latin square, without computing w.

        Args:
            loc: [T, C, W].
            noise: `square.noise` [T, G, M, W], G = 1 or C.
            square: assigns noise to the rows of each draw.
            x: inputs [T, N, *X].
        """


@dataclass(frozen=True, eq=False)
class Drawn:
    """p(y | x_query, w_l) under draws w_l ~ q.

    Attributes:
        likelihood: batch [L, T, Q].
        square: how the draws share noise; None: the draws are independent.
    """

    likelihood: TorchDistribution
    square: LatinSquare | None = None


@dataclass(frozen=True, eq=False)
class Draws:
    """L draws of w ~ q, from which the likelihood of any queries of the same tasks follows.

    Attributes:
        model: the likelihood.
        w: independent draws [L, T, *W]; None: the draws of a Latin square.
        loc, noise: [T, C, W] and [T, G, M, W] of these.
        square: how these share noise.
    """

    model: Model
    w: Tensor | None
    loc: Tensor | None = None
    noise: Tensor | None = None
    square: LatinSquare | None = None

    @classmethod
    def of(cls, model: Model, q: TorchDistribution, num_samples: int) -> Self:
        """num_samples draws, one for a point estimate.

        A Gaussian q with independent weights is drawn by a `LatinSquare` if the model has `DrawsOutputs`.

        Args:
            model: the likelihood.
            q: a distribution over w, batch [T].
            num_samples: L.
        """
        normal: Any = innermost(q)
        if num_samples < 2 or not isinstance(normal, Normal) or normal.loc.dim() != 3 or not _draws_outputs(model):
            return cls(model, draws_of(q, num_samples))
        loc, scale = normal.loc, normal.scale
        square = LatinSquare(num_samples, loc.shape[1])
        shared = scale.stride(1) == 0 or scale.shape[1] == 1  # an expanded scale is the same for all rows
        with torch.no_grad():
            noise = square.noise(scale[:, :1] if shared else scale)
        return cls(model, None, loc, noise, square)

    def outputs(self, x: Tensor) -> Tensor:
        """outputs(w, x) [L, T, N, *Y] of inputs [T, N, *X]."""
        model: Any = self.model
        if self.w is not None:
            return model.outputs(self.w, x)
        return model.outputs_of_draws(self.loc, self.noise, self.square, x)

    def likelihood(self, observed: Observed) -> TorchDistribution:
        """p(y | x_query, w_l), batch [L, T, Q]."""
        if self.w is not None:
            return self.model.likelihood(self.w, observed.query_x, observed)
        return self.model.likelihood_of(self.outputs(observed.query_x))


def likelihood_of_draws(model: Model, q: TorchDistribution, observed: Observed, num_samples: int) -> Drawn:
    """The likelihood of the queries under num_samples draws of w ~ q, one for a point estimate.

    Args:
        model: the likelihood.
        q: a distribution over w, batch [T].
        observed: T tasks with features as inputs.
        num_samples: L.
    """
    draws = Draws.of(model, q, num_samples)
    return Drawn(draws.likelihood(observed), draws.square)


def _draws_outputs(model: Model) -> bool:
    """Whether the model has DrawsOutputs, and no derived class has changed what it stands for."""
    owner = next(base for base in type(model).__mro__ if {"likelihood", "outputs"} & vars(base).keys())
    return has(model, DrawsOutputs) and "outputs_of_draws" in vars(owner)
