"""Class predictions of an ensemble of learners with temperature scaling."""

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
    """Ensemble of learners with temperature scaling. The probability of class c is proportional to

        p(c)^(1 / temperature),

    where p(c) is the predictive probability of class c, averaged over the learners. (Deep ensembles: Lakshminarayanan,
    Pritzel and Blundell 2017. Temperature scaling: Guo et al. 2017.)

    Args:
        learners: one or more learners.
        temperature: the temperature; None: 1.
    """

    learners: Sequence[MetaLearner]
    temperature: float | None = None

    def predictions(self, episodes: Episodes, samples: int) -> ClassPredictions:
        """Compute the class predictions of a batch of tasks.

        Args:
            episodes: the tasks, with inputs of the backbones (features if the backbones are frozen).
            samples: number of draws of the weights w per task and learner.

        Returns:
            Without a temperature: one sample per learner. The mean of the samples is the prediction of the ensemble.
            With a temperature: a single sample, the scaled prediction of the ensemble.

        Raises:
            UsageError: the labels of the tasks are not classes.
        """
        members = [_averaged(learner, episodes, samples) for learner in self.learners]
        log_probs = torch.stack([member.averaged for member in members])
        together = ClassPredictions(members[0].labels, members[0].mask, log_probs)
        if self.temperature is None:
            return together
        return ClassPredictions(together.labels, together.mask, scaled(together.averaged, self.temperature)[None])

    def fitted(self, batches: Iterable[Episodes], samples: int) -> Recalibration:
        """Return the same ensemble with the temperature that has the smallest NLL on validation tasks.

        Args:
            batches: batches of validation tasks. They must not share classes with the test tasks.
            samples: number of draws of the weights w per task and learner.
        """
        log_probs, labels = zip(*(_queries(self.predictions(batch, samples)) for batch in batches), strict=True)
        return Recalibration(self.learners, fitted_temperature(torch.cat(log_probs), torch.cat(labels)))

    def scores(self, episodes: Episodes, samples: int) -> BatchScores:
        """Compute the scores of the predictions of a batch of tasks.

        Args:
            episodes: the tasks, with inputs of the backbones (features if the backbones are frozen).
            samples: number of draws of the weights w per task and learner.

        Returns:
            The scores; for a single learner also the spreads of its prior and posterior.
        """
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
            "expected class labels for temperature scaling and ensembles, got predictions of type "
            f"{type(predictions).__name__}; remove the settings eval.temperature and eval.ensemble"
        )
    return predictions


def _queries(predictions: ClassPredictions) -> tuple[Tensor, Tensor]:
    """Return log probabilities [N, C] of C classes and labels [N] of the N unmasked queries of all tasks."""
    return predictions.averaged[predictions.mask], predictions.labels[predictions.mask]
