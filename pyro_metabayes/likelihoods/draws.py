"""The likelihood under draws of w. Some models compute the outputs without computing w."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, Self, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import has, members
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.likelihoods.classes import class_log_probs
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.moments import draws_of


@runtime_checkable
class FixesWeights(Protocol):
    """Interface of a model that does the computations that depend only on w once, for many inputs x."""

    def outputs_at(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function from inputs x [T, N, *X] to outputs(w, x). The function can be pickled.

        Args:
            w: weights [..., T, *W] of T tasks.
        """


@runtime_checkable
class DrawsOutputs(Protocol):
    """Interface of a model that computes outputs under the draws of a `LatinSquare` without computing w."""

    def outputs_of_draws(self, loc: Tensor, noise: Tensor, square: LatinSquare) -> Callable[[Tensor], Tensor]:
        """Return the function from inputs x [T, N, *X] to outputs(w_l, x) [L, T, N, *Y] of L draws w_l.

        Args:
            loc: [T, C, W], mean of w, for T tasks and C classes with W weights each.
            noise: [T, G, M, W], the M noise vectors `square.noise(scale)`; G is 1 or C.
            square: assignment of noise vectors to the C rows of each draw.
        """


@dataclass(frozen=True, eq=False)
class Drawn:
    """The likelihood of the queries under L draws of w ~ q.

    Attributes:
        likelihood: p(y | x_query, w_l) per draw, task and query, batch [L, T, Q].
        square: the Latin square of the draws; None: the draws are independent.
    """

    likelihood: TorchDistribution
    square: LatinSquare | None = None


@dataclass(frozen=True, eq=False)
class Draws:
    """L draws of w ~ q for T tasks, and the likelihood of any queries under these draws.

    The draws are either independent, stored in `w`, or a Latin square, stored in `loc`, `noise` and `square`.

    Attributes:
        model: the likelihood.
        w: [L, T, *W], independent draws; None: a Latin square.
        loc: [T, C, W], mean of w, with W weights for each of C classes.
        noise: [T, G, M, W], the result of `LatinSquare.noise`: M shared noise vectors; G is 1 or C.
        square: assignment of noise vectors to the C rows of each draw.
    """

    model: Model
    w: Tensor | None
    loc: Tensor | None = None
    noise: Tensor | None = None
    square: LatinSquare | None = None

    @classmethod
    def of(cls, model: Model, q: TorchDistribution, num_samples: int) -> Self:
        """Draw w from q num_samples times; once if q is a point estimate.

        Two or more draws form a `LatinSquare` if q is a Gaussian over [C, W] with independent weights, and the class of
        the model that defines likelihood and outputs also has the method `outputs_of_draws`.

        Args:
            model: the likelihood.
            q: a distribution over the weights w of T tasks, batch [T].
            num_samples: number of draws.
        """
        normal: Any = innermost(q)
        if num_samples < 2 or not isinstance(normal, Normal) or normal.loc.dim() != 3 or not _own(model, DrawsOutputs):
            return cls(model, draws_of(q, num_samples))
        loc, scale = normal.loc, normal.scale
        square = LatinSquare(num_samples, loc.shape[1])
        shared = scale.stride(1) == 0 or scale.shape[1] == 1  # an expanded scale is the same for all rows
        with torch.no_grad():
            noise = square.noise(scale[:, :1] if shared else scale)
        return cls(model, None, loc, noise, square)

    @cached_property
    def outputs(self) -> Callable[[Tensor], Tensor]:
        """Function from inputs [T, N, *X] to outputs [L, T, N, *Y] (logits or means) under the L draws.

        Computations on the draws alone are done once, when this property is first read.
        """
        model: Any = self.model
        if self.w is None:
            return model.outputs_of_draws(self.loc, self.noise, self.square)
        return model.outputs_at(self.w) if _own(model, FixesWeights) else partial(model.outputs, self.w)

    def likelihood(self, observed: Observed) -> TorchDistribution:
        """Return the likelihood p(y | x_query, w_l) of the queries of `observed` under L draws, batch [L, T, Q]."""
        if self.w is not None:
            return self.model.likelihood(self.w, observed.query_x, observed)
        return self.model.likelihood_of(self.outputs(observed.query_x))

    @property
    def has_logits(self) -> bool:
        """Whether `outputs` are log p(y = c | x, w_l) up to a term without c, if the labels are classes c."""
        return self.model.canonical and type(self.model).likelihood is Model.likelihood

    def logits(self, observed: Observed) -> Tensor:
        """Compute log p(y = c | x_query, w_l) [L, T, Q, C] of every class c, in nats, up to a term without c.

        The term is left out, since class probabilities do not depend on it.

        Args:
            observed: T tasks with Q queries each and features as inputs.

        Raises:
            UsageError: the labels are not classes.
        """
        return self.outputs(observed.query_x) if self.has_logits else class_log_probs(self.likelihood(observed))


def likelihood_of_draws(model: Model, q: TorchDistribution, observed: Observed, num_samples: int) -> Drawn:
    """Draw w from q num_samples times, and return the likelihood of the queries. A point estimate has one draw.

    Args:
        model: the likelihood.
        q: a distribution over w, batch [T].
        observed: T tasks with features as inputs.
        num_samples: number of draws.
    """
    draws = Draws.of(model, q, num_samples)
    return Drawn(draws.likelihood(observed), draws.square)


def _own(model: Model, capability: type[FixesWeights | DrawsOutputs]) -> bool:
    """Return whether the class that defines `likelihood` or `outputs` of the model also defines the capability."""
    owner = next(base for base in type(model).__mro__ if {"likelihood", "outputs"} & vars(base).keys())
    return has(model, capability) and members(capability) <= vars(owner).keys()
