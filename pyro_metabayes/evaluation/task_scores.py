"""Scores of a batch of tasks under posterior draws, the posterior mean and the mean of the exact posterior; spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.data.stream import KnownTruth
from pyro_metabayes.diagnostics import collapse
from pyro_metabayes.diagnostics.collapse_metrics import Spread
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.evaluation.batch_scores import BatchScores
from pyro_metabayes.evaluation.log_scores import LOG_SCORES
from pyro_metabayes.evaluation.score import Score, TaskScores, Weights
from pyro_metabayes.evaluation.scores import SCORES, values_of
from pyro_metabayes.evidence.joint import joint_predictive
from pyro_metabayes.handlers.memoise import memoise
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import BaseNovelPredictions, ClassPredictions
from pyro_metabayes.likelihoods.draws import Drawn, likelihood_of_draws
from pyro_metabayes.likelihoods.numbers import RealPredictions
from pyro_metabayes.likelihoods.predictions import Predictions, predictions_of
from pyro_metabayes.model import Model
from pyro_metabayes.open_set.predictions import log_evidence, open_set_predictions
from pyro_metabayes.prediction.moments import mean_of
from pyro_metabayes.prediction.numbers import integrates
from pyro_metabayes.seeding import restored_noise


def task_scores(
    learner: MetaLearner,
    episodes: Episodes,
    posterior: TorchDistribution,
    samples: int,
    scores: Sequence[Score[Any]],
    exact: TorchDistribution | None = None,
    draws: Predictions | None = None,
    under_mean: bool = True,
) -> TaskScores:
    """Compute the requested scores without host synchronisation; undefined scores are left out.

    Args:
        learner: the learner whose model makes the predictions.
        episodes: T tasks with features as inputs.
        posterior: approximate posterior of w, batch [T].
        samples: draws of w per task; one draw is taken for a point estimate.
        scores: the requested scores.
        exact: the exact posterior of w, batch [T]; None: leave out the scores of the exact posterior mean.
        draws: predictions to score; None: compute the predictions under draws of the posterior.
        under_mean: whether to include the scores of predictions under the posterior mean of w.

    Returns:
        Tensors [T] by name of the score, in the unit `Score.unit`. The tensor of ece is [T, Q, 3] for Q queries.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`).
    """
    draws = predictions_under(posterior, learner.model, episodes, samples) if draws is None else draws
    if isinstance(draws, ClassPredictions) and 0 < episodes.num_classes < draws.log_probs.shape[-1]:
        draws = _with_base(draws, episodes.num_classes)
    if episodes.unknown_mask is not None:
        evidence = log_evidence(learner.model, posterior, episodes, samples) if under_mean else None
        draws = open_set_predictions(draws, episodes.unknown_mask, evidence)
    values = values_of(draws, Weights.DRAWS, scores)
    if under_mean and any(score.applies_to(draws, Weights.MEAN) for score in scores):
        is_point = isinstance(innermost(posterior), Delta)  # the mean of a point estimate is the estimate
        of_mean = draws if is_point else _at(mean_of(posterior), learner, episodes)
        values |= values_of(of_mean, Weights.MEAN, scores)
    if exact is not None:
        values |= values_of(_at(exact.mean, learner, episodes), Weights.EXACT_MEAN, scores)
    return values


def joint_scores(model: Model, posterior: TorchDistribution, episodes: Episodes, samples: int) -> TaskScores:
    """Compute the joint NLL [T], with bounds and diagnostics; the random state is preserved.

    Args:
        model: the likelihood.
        posterior: approximate posterior of w, batch [T].
        episodes: T tasks with features as inputs.
        samples: importance draws per task.
    """
    with restored_noise():
        return values_of(joint_predictive(model, posterior, episodes, samples), Weights.INTEGRATED, LOG_SCORES)


def predictions_under(
    q: TorchDistribution, model: Model, episodes: Episodes, samples: int, drawn: Drawn | None = None
) -> Predictions:
    """Predict the query labels under draws of w ~ q, or by the integral over q if the model has a closed form.

    Args:
        q: a distribution over w, batch [T].
        model: the likelihood.
        episodes: T tasks with features as inputs.
        samples: draws of w per task; one draw is taken for a point estimate.
        drawn: the likelihood under existing draws of w; None: draw w.
    """
    observed = episodes.observed()
    labels = episodes.query_y, episodes.query_mask
    if integrates(model, q):
        exact: Any = innermost(model.predictive(q, observed))
        one_sample = Normal(exact.mean.unsqueeze(0), exact.stddev.unsqueeze(0))
        return RealPredictions(*labels, one_sample)
    drawn = likelihood_of_draws(model, q, observed, samples) if drawn is None else drawn
    return predictions_of(drawn.likelihood, *labels)


def _at(w: Tensor, learner: MetaLearner, episodes: Episodes) -> Predictions:
    """Predict the query labels under one value w [T, *W] of the weights per task."""
    observed = episodes.observed()
    likelihood = learner.model.likelihood(w.unsqueeze(0), observed.query_x, observed)
    return predictions_of(likelihood, episodes.query_y, episodes.query_mask)


def _with_base(draws: ClassPredictions, num_novel: int) -> BaseNovelPredictions:
    """Convert to BaseNovelPredictions: the first num_novel classes are novel, the others are base classes."""
    return BaseNovelPredictions(draws.labels, draws.mask, draws.log_probs, num_novel)


def score_batch(
    learner: MetaLearner, episodes: Episodes, samples: int, truth: KnownTruth | None = None, joint_samples: int = 0
) -> BatchScores:
    """Compute all scores and spreads of a batch of tasks, on the device of the tasks.

    Only the joint NLL needs host synchronisation.

    Args:
        learner: the learner to evaluate.
        episodes: T tasks with features as inputs.
        samples: draws of w per task; one draw is taken for a point estimate.
        truth: the exact posterior of simulated tasks; None: unknown.
        joint_samples: importance draws per task for the joint NLL; 0: leave out the joint NLL.

    Returns:
        Scores and spreads per task, without scores by inner step.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`).
    """
    with memoise():
        return _score_batch(learner, episodes, samples, truth, joint_samples)


def _score_batch(
    learner: MetaLearner, episodes: Episodes, samples: int, truth: KnownTruth | None, joint_samples: int
) -> BatchScores:
    observed = episodes.observed()
    posterior = learner.guide.posterior(observed)
    exact = _exact(learner.model, observed, truth)
    closed_form = integrates(learner.model, posterior)
    drawn = None if closed_form else likelihood_of_draws(learner.model, posterior, observed, samples)
    draws = predictions_under(posterior, learner.model, episodes, samples, drawn)
    scores = task_scores(learner, episodes, posterior, samples, SCORES, exact, draws)
    if joint_samples:
        scores |= joint_scores(learner.model, posterior, episodes, joint_samples)
    sees_labels = learner.guide.sees_query_labels  # otherwise both posteriors are equal
    training = learner.guide.training_posterior(episodes) if sees_labels else posterior
    known = replace(observed, query_mask=episodes.query_mask)  # the tasks without their queries of unknown classes
    spreads = collapse.prior_spread(learner, known, samples) | collapse.posterior_spread(learner, episodes, training)
    square = None if drawn is None else drawn.square
    spreads |= collapse.posterior_outputs(learner, known, posterior, samples, square, draws)
    if exact is not None:
        spreads |= collapse.against_truth(posterior, exact)
    if truth is not None and exact is not None and sees_labels:
        spreads |= _training_fit(training, truth.truth(episodes.pooled()))
    return BatchScores(scores, spreads)


def _exact(model: Model, observed: Observed, truth: KnownTruth | None) -> TorchDistribution | None:
    """Return the exact posterior of simulated tasks; None if unknown, or if w has another shape in the model."""
    exact = None if truth is None else truth.truth(observed)
    return None if exact is None or exact.event_shape != model.event_shape(observed) else exact


def _training_fit(training: TorchDistribution, exact: TorchDistribution) -> Spread:
    """Compute the variances per task of the training posterior, and of the exact posterior given the same labels."""
    fit = collapse.against_truth(training, exact)
    return {f"training_{name}": fit[name] for name in ("fit_variance", "true_variance") if name in fit}
