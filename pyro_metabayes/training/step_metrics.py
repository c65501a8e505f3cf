"""Metrics of a logged step: scores of the posterior, spreads of prior and posterior, scores on validation tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.diagnostics.collapse import METRICS, batch_spreads, summary
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import noise_of

LOGGED_SAMPLES = 10  # draws of w for the scores and the collapse metrics of a logged step
LOGGED_SCORES = ("accuracy", "nll", "mse", "mutual_information")
LOGGED_METRICS = (*LOGGED_SCORES, *METRICS)


@torch.no_grad()
def measure(learner: MetaLearner, episodes: Episodes, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and spreads of each task [T], on the device; the random numbers of training are not advanced.

    Pyro's validation is off, so that parameters that overflow give a non-finite metric and no exception.
    """
    episodes = learner.featured(episodes)
    with noise_of(seed), pyro.validation_enabled(False):
        _, likelihood = learner.posterior_predictive(episodes.observed(), LOGGED_SAMPLES)
        scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
        return scores, batch_spreads(learner, episodes, LOGGED_SAMPLES)


def metric_means(scores: Mapping[str, Tensor], spreads: Mapping[str, Tensor]) -> dict[str, Any]:
    """LOGGED_METRICS, means over tasks, read on the host; null for a metric that the setting does not have."""
    means = {name: scores[name].mean().item() if name in scores else None for name in LOGGED_SCORES}
    return means | summary(spreads)


def validation_metrics(learner: MetaLearner, stream: TaskStream, num_tasks: int, seed: int) -> dict[str, float]:
    """val_nll of `posterior` on validation tasks, and val_accuracy in classification."""
    settings = EvalSettings(tasks=num_tasks, samples=LOGGED_SAMPLES, split="val")
    metrics = evaluate(learner, stream, settings, seed, progress=False).metrics
    accuracy = {"val_accuracy": metrics["accuracy"]["mean"]} if metrics["accuracy"] else {}
    return {"val_nll": metrics["nll"]} | accuracy
