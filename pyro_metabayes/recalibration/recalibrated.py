"""Predictions of classes by several learners, at a temperature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_metabayes.diagnostics.collapse import batch_spreads
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.batch_scores import BatchScores
from pyro_metabayes.evaluation.scores import SCORES
from pyro_metabayes.evaluation.task_scores import predictions_under, task_scores
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.recalibration.temperature import fitted_temperature, scaled


@dataclass(frozen=True, eq=False)
class Recalibration:
    """p(c) = mean over learners of their averaged predictions, then p(c)^(1/T), normalised.

    (Deep ensembles: Lakshminarayanan, Pritzel and Blundell 2017. Temperature: Guo et al. 2017.)

    Args:
        learners: at least one.
        temperature: T; None: not scaled.
    """

    learners: Sequence[MetaLearner]
    temperature: float | None = None

    def predictions(self, episodes: Episodes, samples: int) -> ClassPredictions:
        """The predictions of T tasks, with one sample per learner, or one at a temperature.

        Args:
            episodes: T tasks, with inputs of the backbones (features if these are frozen).
            samples: draws of w per task and learner.

        Raises:
            UsageError: the labels are numbers.
        """
        members = [_averaged(learner, episodes, samples) for learner in self.learners]
        log_probs = torch.stack([member.averaged for member in members])
        together = ClassPredictions(members[0].labels, members[0].mask, log_probs)
        if self.temperature is None:
            return together
        return ClassPredictions(together.labels, together.mask, scaled(together.averaged, self.temperature)[None])

    def fitted(self, batches: Iterable[Episodes], samples: int) -> Recalibration:
        """The same learners at the temperature of the smallest NLL on validation tasks.

        Args:
            batches: validation tasks, which share no class with the test tasks.
            samples: draws of w per task and learner.
        """
        log_probs, labels = zip(*(_queries(self.predictions(batch, samples)) for batch in batches), strict=True)
        return Recalibration(self.learners, fitted_temperature(torch.cat(log_probs), torch.cat(labels)))

    def scores(self, episodes: Episodes, samples: int) -> BatchScores:
        """Scores of the predictions of T tasks; the spreads of a single learner, none of several."""
        predictions = self.predictions(episodes, samples)
        learner = self.learners[0]
        episodes = learner.featured(episodes)
        posterior = learner.guide.posterior(episodes.observed())
        scores = task_scores(learner, episodes, posterior, samples, SCORES, draws=predictions, under_mean=False)
        return BatchScores(scores, {} if len(self.learners) > 1 else batch_spreads(learner, episodes, samples))


def _averaged(learner: MetaLearner, episodes: Episodes, samples: int) -> ClassPredictions:
    episodes = learner.featured(episodes)
    predictions = predictions_under(learner.guide.posterior(episodes.observed()), learner.model, episodes, samples)
    if not isinstance(predictions, ClassPredictions):
        raise UsageError(
            f"expected tasks of classes for a temperature or an ensemble, got {type(predictions).__name__}; leave "
            "eval.temperature and eval.ensemble out"
        )
    return predictions


def _queries(predictions: ClassPredictions) -> tuple[Tensor, Tensor]:
    """log p [N, C] and labels [N] of the queries that count."""
    return predictions.averaged[predictions.mask], predictions.labels[predictions.mask]
