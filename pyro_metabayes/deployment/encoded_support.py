"""Encoding of the support set of one task, reused for any number of query sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.likelihoods.draws import Draws
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.arrays import SupportSet
from pyro_metabayes.prediction.features import ChecksFeatures, with_queries
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.seeding import noise_of


@dataclass(frozen=True, eq=False)
class Posterior:
    """The approximate posterior q(w | support [, x_query]) of one task, with the seed and states of its draws.

    Attributes:
        model: the likelihood.
        q: approximate posterior, batch [1], event [*W], where *W is the shape of the task weights w.
        num_samples: number of draws of w.
        seed: seed of the draws.
        states: generator states after q was computed, by device. The draws of w start from these states.
    """

    model: Model
    q: TorchDistribution
    num_samples: int
    seed: int
    states: Mapping[torch.device, Tensor]

    @cached_property
    def draws(self) -> tuple[Draws, Mapping[torch.device, Tensor]]:
        """Draws of w from q, and the generator states, by device, after these draws."""
        with noise_of(self.seed, self.states) as generators:
            return Draws.of(self.model, self.q, self.num_samples), generators.states()


@dataclass(frozen=True, eq=False)
class Answer:
    """What predictions need: the approximate posterior of a task, and the features of Q queries.

    Attributes:
        posterior: the approximate posterior over w.
        support: the task with its support set; its queries are ignored.
        query_x: [1, Q, F], F features of each of the Q queries.
    """

    posterior: Posterior
    support: Observed
    query_x: Tensor

    @property
    def data(self) -> Observed:
        """The task with the queries `query_x`. It is constructed on access, since the checks take time."""
        return with_queries(self.support, self.query_x)


class EncodedSupport:
    """The support set of one task. The constructor checks it, and computes what does not depend on the queries:

    * the features of the support set, if they do not depend on the queries;
    * the posterior, if neither the features nor the guide depends on the queries.

    Args:
        learner: the learner.
        support: the support set.
        num_samples: number of draws of w.
        seed: seed of the draws.

    Attributes:
        support: the support set.
    """

    def __init__(self, learner: Predicts, support: SupportSet, num_samples: int, seed: int) -> None:
        self._learner, self.support = learner, support
        self._num_samples, self._seed = num_samples, seed
        shape = support.x.shape[1:]
        self._frame = learner.frame_of(support.task(support.x.new_zeros(0, *shape)))
        self._checks = [part for part in learner.model.modules() if isinstance(part, ChecksFeatures)]
        self._once: Posterior | None = None
        if self._frame is not None:
            learner.checked(self._frame.support)
            self._once = None if learner.guide.transductive else self._inferred(self._frame.support)

    @property
    def depends_on_queries(self) -> bool:
        """Whether the posterior depends on the queries and must be computed for each query set."""
        return self._once is None

    def fix_weights(self) -> None:
        """Draw w, and compute what depends on w only. Do nothing if the posterior depends on the queries."""
        if self._once is not None:
            _ = self._once.draws[0].outputs

    def at(self, queries: Tensor) -> Answer:
        """Return the approximate posterior and the features of the queries.

        Args:
            queries: query inputs [Q, *X], from `support.queries`.
        """
        if self._frame is None:
            data = self._learner.embedded(self.support.task(queries))
            return Answer(self._inferred(data), data, data.query_x)
        features = self._frame.embed(queries.unsqueeze(0))
        for part in self._checks:  # learned=True permits queries that are all equal
            part.check_features(features.squeeze(0), learned=True)
        if self._once is not None:
            return Answer(self._once, self._frame.support, features)
        return Answer(self._inferred(with_queries(self._frame.support, features)), self._frame.support, features)

    def _inferred(self, data: Observed) -> Posterior:
        with noise_of(self._seed) as generators:
            q = self._learner.guide.posterior(data)
            return Posterior(self._learner.model, q, self._num_samples, self._seed, generators.states())
