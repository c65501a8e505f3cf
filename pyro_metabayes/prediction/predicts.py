"""Predictions of a learner: for a batch of tasks, or for the user's arrays of one task."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.guide import Guide
from pyro_metabayes.likelihoods.draws import Draws
from pyro_metabayes.prediction.arrays import SupportSet
from pyro_metabayes.prediction.features import Featured
from pyro_metabayes.prediction.moments import draws_of
from pyro_metabayes.prediction.numbers import NumberPrediction, predicted_numbers
from pyro_metabayes.prediction.probabilities import Prediction, check_num_samples, prediction_of
from pyro_metabayes.prediction.tensors import Array
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.validation.trained_on import TaskRange, warn_if_unfamiliar
from pyro_metabayes.validation.values import validate


class Predicts(Featured):
    """A learner with a guide and with predictions.

    Attributes:
        trained_on: ranges of way, shot and number of queries of the training tasks; None: not recorded.
    """

    guide: Guide
    trained_on: TaskRange | None

    @property
    def num_targets(self) -> int:
        """Number Y of values in one label of a regression; 0 if the labels are classes."""
        raise NotImplementedError

    def posterior_predictive(self, observed: Observed, num_samples: int) -> tuple[Tensor, TorchDistribution]:
        """Draw samples w of the approximate posterior; return w and the likelihood p(y | x, w) of the queries.

        Args:
            observed: T tasks with features as inputs, and Q queries per task.
            num_samples: number L of samples; a point estimate has one sample.

        Returns:
            w: [L, T, *W], where *W is the shape of the weights of one task.
            likelihood: p(y | x, w), batch [L, T, Q].
        """
        validate(observed, self.model, self.backbone.num_features)
        return self.predictive_under(self.guide.posterior(observed), observed, num_samples)

    def predictive(self, observed: Observed, num_samples: int) -> TorchDistribution:
        """Return the likelihood p(y | x, w) of the queries under samples w of the approximate posterior.

        This is faster than `posterior_predictive`. The samples may share random numbers
        (`pyro_metabayes/distributions/latin_square.py`).

        Args:
            observed: T tasks with features as inputs, and Q queries per task.
            num_samples: number L of samples; a point estimate has one sample.

        Returns:
            The likelihood p(y | x, w), batch [L, T, Q].
        """
        return self._draws(observed, num_samples).likelihood(observed)

    def _draws(self, observed: Observed, num_samples: int) -> Draws:
        validate(observed, self.model, self.backbone.num_features)
        return Draws.of(self.model, self.guide.posterior(observed), num_samples)

    def predictive_under(
        self, distribution: TorchDistribution, observed: Observed, num_samples: int
    ) -> tuple[Tensor, TorchDistribution]:
        """Draw samples w of a distribution; return w and the likelihood of the queries, as `posterior_predictive`."""
        w = draws_of(distribution, num_samples)
        return w, self.model.likelihood(w, observed.query_x, observed)

    @torch.no_grad()
    def predict(
        self, support_x: Array, support_y: Array, query_x: Array, num_samples: int = 100, seed: int = 0
    ) -> Prediction | NumberPrediction:
        """Predict the labels of the query inputs of one task, from arrays.

        In a regression, inputs and labels must be standardised like the training data.

        Args:
            support_x: support inputs [S, *X]: features, or images (floats in [0, 1], or integers).
            support_y: support labels. Classification: integers [S] from 0 to C - 1. Regression: numbers [S, Y], or [S]
                if Y = 1; S may be 0.
            query_x: query inputs [Q, *X].
            num_samples: number of draws of the weights w; unused if predictions have a closed form.
            seed: seed of the draws; no global random state is read or changed.

        Returns:
            Classification: class probabilities [Q, C], and the standard deviations [Q, C] over draws of w. Base classes
            of the training come last.
            Regression: mean, standard deviation and 90% interval [Q, Y], in the unit of support_y.

        Raises:
            UsageError: an array is not suitable for the learner, or a prediction is not finite.
        """
        check_num_samples(num_samples)
        like = next(self.parameters(), torch.empty(0))  # a regression may have no parameters
        support = SupportSet(support_x, support_y, self.input_shape, self.backbone, like, self.num_targets)
        task = support.task(support.queries(query_x))
        if self.num_targets:
            with noise_of(seed):
                data = self.embedded(task)
                return predicted_numbers(self.model, self.guide.posterior(data), data, num_samples)
        with noise_of(seed):
            data = self.embedded(task)
            answer = prediction_of(lambda: self._draws(data, num_samples).logits(data), like.dtype)
        warn_if_unfamiliar(self.guide, self.trained_on, task)
        return answer
