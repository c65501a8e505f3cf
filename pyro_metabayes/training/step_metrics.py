"""Metrics of a logged training step: scores of the posterior, collapse metrics, and scores on validation tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.diagnostics.collapse import batch_spreads
from pyro_metabayes.diagnostics.collapse_metrics import METRICS, Spread, summary
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.score import TaskScores
from pyro_metabayes.evaluation.scores import logged_scores
from pyro_metabayes.evaluation.task_scores import task_scores
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import seeded

LOGGED_SAMPLES = 10  # draws of w for the scores and the collapse metrics of a logged step
VALIDATION_SAMPLES = 100  # draws of w in a validation; many, since the validation NLL selects the final learner
LOGGED_METRICS = (*(score.name for score in logged_scores()), *METRICS)


@torch.no_grad()
def measure(learner: MetaLearner, episodes: Episodes, seed: int) -> tuple[TaskScores, Spread]:
    """Compute, for each task, the logged scores of the posterior and the spreads of prior and posterior.

    The random state of training does not change. Pyro's validation is off: parameters that overflow give a non-finite
    metric, not an exception.

    Args:
        learner: the learner in training.
        episodes: T tasks, with inputs of the backbone.
        seed: seed of all draws of w.

    Returns:
        Scores and spreads by name, [T] or [T, ...], on the device of the tasks.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`).
    """
    episodes = learner.featured(episodes)
    with seeded(seed), pyro.validation_enabled(False):
        posterior = learner.guide.posterior(episodes.observed())
        scores = task_scores(learner, episodes, posterior, LOGGED_SAMPLES, logged_scores())
        return scores, batch_spreads(learner, episodes, LOGGED_SAMPLES)


def metric_means(scores: Mapping[str, Tensor], spreads: Mapping[str, Tensor]) -> dict[str, Any]:
    """Average scores and spreads over tasks, as floats for a line of metrics.jsonl.

    Args:
        scores: scores of each task, from `measure`.
        spreads: spreads of prior and posterior of each task, from `measure`.

    Returns:
        The logged scores and then the collapse metrics, by name; None for a metric that is not defined.
    """
    logged = logged_scores()
    means = {score.name: score.pooled(scores[score.name]) if score.name in scores else None for score in logged}
    return means | summary(spreads)


def step_metrics(
    learner: MetaLearner, tasks: Callable[[], Episodes], terms: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """Compute the metrics of a training step for a line of metrics.jsonl.

    All metrics are None if the loss is not finite.

    Args:
        learner: the learner in training.
        tasks: function that returns the tasks of the step, with inputs of the backbone.
        terms: the terms of the loss of the step, in nats per task.
        seed: seed of all draws of w.

    Returns:
        Terms of the loss and metrics by name, among them
        elbo: log_likelihood - kl; None if -loss is not a lower bound on the log evidence.
        kl: the KL term of the loss if it has a closed form, else the more precise estimate of `measure`.
        kl_monte_carlo_error: standard error of this estimate.
    """
    if not math.isfinite(terms["loss"]):
        return dict.fromkeys((*terms, *LOGGED_METRICS))
    measured = metric_means(*measure(learner, tasks(), seed))
    metrics = measured | dict(terms)
    # For a point estimate the term `kl` of the loss is -log p(w), which is no KL, and the metric is None. The one-draw
    # estimate of a KL without a closed form is replaced by the estimate of `measure`.
    if measured["kl"] is None or measured["kl_monte_carlo_error"] is not None:
        metrics["kl"] = measured["kl"]
    bound = learner.objective.bound and metrics["elbo"] is not None
    metrics["elbo"] = metrics["log_likelihood"] - metrics["kl"] if bound else None
    return metrics


def validation_metrics(learner: MetaLearner, stream: TaskStream, num_tasks: int, seed: int) -> dict[str, float]:
    """Compute the NLL of the approximate posterior on validation tasks, and the accuracy in classification.

    All validations of a training have the same tasks and random numbers. Most of the Monte-Carlo noise thus cancels in
    differences between validations. The NLL is exact for a point estimate, and for a Gaussian posterior of a linear
    model with Gaussian noise. Otherwise the NLL has a Monte-Carlo bias, which is larger for wider posteriors and is
    estimated by val_nll_bias.

    Args:
        learner: the learner in training.
        stream: the validation tasks.
        num_tasks: number of validation tasks.
        seed: seed of all draws of w.

    Returns:
        val_nll and val_nll_bias in nats per query, and in classification val_accuracy, 0 to 1.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`).
    """
    settings = EvalSettings(num_tasks, VALIDATION_SAMPLES, split="val", number_samples=VALIDATION_SAMPLES)
    metrics = evaluate(learner, stream, settings, seed, progress=False).metrics
    accuracy = {"val_accuracy": metrics["accuracy"]["mean"]} if metrics["accuracy"] else {}
    return {"val_nll": metrics["nll"], "val_nll_bias": metrics["nll_monte_carlo_bias"]} | accuracy
