"""The approximate posterior of one task, computed once for any number of query sets if the guide is inductive."""

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
    """q(w | support [, x_query]) of one task, and the noise with which it is sampled.

    Attributes:
        model: the likelihood.
        q: batch [1], event [*W].
        num_samples: number of draws of w.
        seed: seed of the draws.
        states: states of the generators after q was computed, from which w is drawn.
    """

    model: Model
    q: TorchDistribution
    num_samples: int
    seed: int
    states: Mapping[torch.device, Tensor]

    @cached_property
    def draws(self) -> tuple[Draws, Mapping[torch.device, Tensor]]:
        """Draws of w, and the states of the generators after them."""
        with noise_of(self.seed, self.states) as generators:
            return Draws.of(self.model, self.q, self.num_samples), generators.states()


@dataclass(frozen=True, eq=False)
class Answer:
    """The posterior of a task, and features of queries.

    Attributes:
        posterior: the posterior.
        support: the task, with any queries.
        query_x: features [1, Q, F] of the queries.
    """

    posterior: Posterior
    support: Observed
    query_x: Tensor

    @property
    def data(self) -> Observed:
        """The task with these queries; its checks take as long as a prediction, so it is made where it is needed."""
        return with_queries(self.support, self.query_x)


class EncodedSupport:
    """The support set of one task, encoded once.

    What is computed once depends on the learner. Its guide may be inductive or transductive, and its backbone may map
    points one by one or relative to the other points of the task.

    * inductive guide, features that do not depend on the queries: features of the support set and posterior;
    * transductive guide, a backbone of single points: features of the support set;
    * features that depend on all points of the task: the checks of the support set alone.

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
        """Whether the posterior depends on the queries, so that it is computed for each query set."""
        return self._once is None

    def at(self, queries: Tensor) -> Answer:
        """The posterior and the features of the given queries.

        Args:
            queries: query inputs [Q, *X], from `support.queries`.
        """
        if self._frame is None:
            data = self._learner.embedded(self.support.task(queries))
            return Answer(self._inferred(data), data, data.query_x)
        features = self._frame.embed(queries.unsqueeze(0))
        for part in self._checks:  # as for learned features: queries may all be equal
            part.check_features(features.squeeze(0), learned=True)
        if self._once is not None:
            return Answer(self._once, self._frame.support, features)
        return Answer(self._inferred(with_queries(self._frame.support, features)), self._frame.support, features)

    def _inferred(self, data: Observed) -> Posterior:
        with noise_of(self._seed) as generators:
            q = self._learner.guide.posterior(data)
            return Posterior(self._learner.model, q, self._num_samples, self._seed, generators.states())
