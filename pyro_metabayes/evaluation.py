"""A stream of tasks in, scores with intervals out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_metabayes.data.sampler import TaskStream
from pyro_metabayes.diagnostics import collapse
from pyro_metabayes.divergences import has_density
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.scores import calibration_error, ci95_of, classification_scores, log_mean_exp

BATCH = 32  # tasks at once; larger batches leave the cache and gain nothing


@dataclass
class EvalSettings:
    """How a trained learner is scored."""

    tasks: int = 600
    samples: int = 30  # draws of w a task; a point mass needs one
    split: str = "test"

    def __post_init__(self) -> None:
        if self.tasks < 2 or self.samples < 1:
            raise UsageError(f"expected eval.tasks >= 2 and eval.samples >= 1, got {self.tasks} and {self.samples}")


@dataclass(frozen=True)
class Evaluation:
    """Figures over all tasks, and the scores of each task for paired comparisons."""

    figures: dict[str, Any]
    per_task: dict[str, np.ndarray]


@contextmanager
def noise_of(seed: int) -> Iterator[None]:
    """Global random numbers from `seed` inside, and as if nothing had been drawn after."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def evaluate(
    learner: MetaLearner, stream: TaskStream, settings: EvalSettings, seed: int, progress: bool = True
) -> Evaluation:
    """Scores of the posterior predictive on tasks 0, 1, ... of the stream; the same for one seed.

    elbo, kl and posterior_sd are of training_posterior, which alone bounds the evidence; null for a
    point mass or a flat prior. All else is of `posterior`, which sees no query label.
    """
    scores: dict[str, list[Tensor]] = {}
    probabilities, labels, started = [], [], time.perf_counter()
    starts = range(0, settings.tasks, BATCH)
    bar = tqdm(starts, desc=f"evaluate on {settings.split}", unit="batch", disable=None if progress else True)
    with noise_of(seed):
        for start in bar:
            batch = stream.batch(start, min(start + BATCH, settings.tasks))
            episodes = learner.featured(batch)
            predicted, of_batch = _predict(learner, episodes, settings.samples)
            of_batch |= _posterior_figures(learner, episodes)
            for name, value in of_batch.items():
                scores.setdefault(name, []).append(value.cpu())
            probabilities.append(predicted[episodes.query_mask].cpu())
            labels.append(episodes.query_y[episodes.query_mask].cpu())
    seconds = time.perf_counter() - started
    per_task = {name: torch.cat(values) for name, values in scores.items()}
    figures = _figures(per_task)
    figures["ece"] = calibration_error(torch.cat(probabilities), torch.cat(labels))
    figures["seconds"] = seconds
    return Evaluation(figures, {name: value.numpy() for name, value in per_task.items()})


def _predict(learner: MetaLearner, episodes: Episodes, samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Predicted probabilities [T, Q, C], and every score and spread [T]."""
    observed = episodes.observed()
    _, likelihood = learner.posterior_predictive(observed, samples)
    log_probs = likelihood.logits.log_softmax(-1)
    scores = classification_scores(log_probs, episodes.query_y, episodes.query_mask)
    predictive = log_mean_exp(log_probs).exp()
    return predictive, scores | collapse.prior_spread(learner, observed, samples)


def _posterior_figures(learner: MetaLearner, episodes: Episodes) -> dict[str, Tensor]:
    """elbo, kl and variance of training_posterior, as batch means repeated for every task [T]."""
    q = learner.guide.training_posterior(episodes)
    if not has_density(q):
        return {}
    figures = {"posterior_variance": q.variance.flatten(1).mean(1)}
    if has_density(learner.model.prior(episodes.observed())):
        terms = Elbo(kl="analytic").terms(learner.model, learner.guide, episodes)
        assert terms.kl is not None
        for name, value in (("elbo", terms.log_likelihood - terms.kl), ("kl", terms.kl)):
            figures[name] = (value / episodes.num_tasks).expand(episodes.num_tasks)
    return figures


def _figures(per_task: dict[str, Tensor]) -> dict[str, Any]:
    """Means over tasks, and the collapse summary."""
    spreads = {name: per_task.pop(name) for name in collapse.SPREADS if name in per_task}
    variance = per_task.pop("posterior_variance", None)
    mean = {name: value.mean().item() for name, value in per_task.items()}
    elbo, kl = mean.pop("elbo", None), mean.pop("kl", None)
    per_task.pop("elbo", None), per_task.pop("kl", None)
    return {
        **mean,
        "accuracy": {"mean": mean["accuracy"], "ci95": ci95_of(per_task["accuracy"].numpy())},
        "elbo": elbo,
        "kl": kl,
        "posterior_sd": None if variance is None else variance.mean().sqrt().item(),
        **collapse.summary(spreads),
    }
