"""Predictions for many query sets of one task, with arrays or tensors as inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.deployment.encoded_support import Answer, EncodedSupport
from pyro_metabayes.prediction.averages import log_mean_softmax, mean_softmax, spread_of_samples
from pyro_metabayes.prediction.numbers import NumberPrediction, predicted_numbers
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.prediction.probabilities import without_nan
from pyro_metabayes.prediction.tensors import Array, returned_like
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.validation.trained_on import warn_if_unfamiliar

LEVEL = 5  # stack level at which a warning points to the caller of a method below


class ClassTask:
    """A classification task with an encoded support set that predicts classes of queries. See `MetaLearner.task`.

    Methods take query inputs [Q, *X] like `MetaLearner.predict`. They return numpy arrays, or tensors if the inputs are
    tensors.

    If `depends_on_queries` is True, each call computes the posterior from the queries of the call. Predictions for a
    query then depend on the other queries. Otherwise the posterior and the draws of the task weights w are fixed.

    Attributes:
        classes: sorted names of the C classes; column c of the probabilities belongs to classes[c].
    """

    def __init__(self, learner: Predicts, encoded: EncodedSupport, classes: np.ndarray) -> None:
        self._learner, self._encoded, self.classes = learner, encoded, classes
        encoded.fix_weights()

    @property
    def depends_on_queries(self) -> bool:
        """Whether predictions for a query depend on the other queries of the call."""
        return self._encoded.depends_on_queries

    @torch.no_grad()
    def predict(self, query_x: Array) -> np.ndarray:
        """Predict the name of the most probable class of each query, as a numpy array [Q]."""
        return self.classes[self._averaged(query_x, mean_softmax).max(-1).indices.cpu().numpy()]

    @torch.no_grad()
    def predict_proba(self, query_x: Array) -> Any:
        """Predict the probabilities [Q, C] of the classes of each query, averaged over draws of w."""
        return returned_like(query_x, self._averaged(query_x, mean_softmax))

    @torch.no_grad()
    def predict_log_proba(self, query_x: Array) -> Any:
        """Predict the log of `predict_proba` [Q, C], in nats; finite even if a probability rounds to 0."""
        return returned_like(query_x, self._averaged(query_x, log_mean_softmax))

    @torch.no_grad()
    def predict_spread(self, query_x: Array) -> Any:
        """Compute the sd over draws of w of the class probabilities of Q queries [Q, C]; 0 for one draw."""
        return returned_like(query_x, self._averaged(query_x, lambda logits: spread_of_samples(logits.softmax(-2))))

    def _averaged(self, query_x: Array, average: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `average` to the logits [L, C, Q] of L draws, C classes and Q queries, and return [Q, C].

        The classes are a middle axis, since a softmax over a last axis of 5 classes takes about 10 times as long.
        """
        answer = self._encoded.at(self._encoded.support.queries(query_x))
        if self.depends_on_queries:
            warn_if_unfamiliar(self._learner.guide, self._learner.trained_on, answer.data, LEVEL)
        return without_nan(lambda: average(_logits(answer)), answer.query_x.dtype).mT


def _logits(answer: Answer) -> Tensor:
    """Compute log p(y = c | x, w_l) [L, C, Q] for L draws w_l, C classes c and Q queries, up to a constant in c."""
    draws, states = answer.posterior.draws
    if draws.has_logits:  # then the task with its queries, whose checks take as long as a prediction, is not needed
        return draws.outputs(answer.query_x).squeeze(1).mT
    with noise_of(answer.posterior.seed, states):
        return draws.logits(answer.data).squeeze(1).mT


class NumberTask:
    """A regression task with an encoded support set that predicts the labels of queries. See `MetaLearner.task`.

    If `depends_on_queries` is True, each call computes the posterior from the queries of the call.
    """

    def __init__(self, learner: Predicts, encoded: EncodedSupport) -> None:
        self._learner, self._encoded = learner, encoded

    @property
    def depends_on_queries(self) -> bool:
        """Whether predictions for a query depend on the other queries of the call."""
        return self._encoded.depends_on_queries

    @torch.no_grad()
    def predict(self, query_x: Array) -> NumberPrediction:
        """Predict mean, standard deviation and 90% interval [Q, Y] of the labels of Q queries, noise included.

        The results are in the unit of support_y, as numpy arrays, or as tensors if query_x [Q, *X] is a tensor.
        """
        answer = self._encoded.at(self._encoded.support.queries(query_x))
        posterior = answer.posterior
        with noise_of(posterior.seed, posterior.states):
            prediction = predicted_numbers(self._learner.model, posterior.q, answer.data, posterior.num_samples)
        return NumberPrediction(*(returned_like(query_x, value) for value in prediction))  # type: ignore[arg-type]
