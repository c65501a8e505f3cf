"""Scores of one method on the tasks of one column of the tables. Finished scores are kept in files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.diagnostics.calibration import bin_sums
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.experiments.transductive.methods import Predict
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.recalibration.temperature import scaled
from pyro_metabayes.storage.checkpoint import write_atomically


@dataclass(frozen=True)
class Cell:
    """Scores of one method on the tasks of one column.

    Attributes:
        accuracy: share of the queries whose most probable class is correct [tasks].
        nll: negative log-likelihood, in nats per query [tasks].
        bins: number of queries, summed confidence and number of correct queries in each confidence bin
            [tasks, bins, 3].
        seed: seed of the training run whose learner predicts the task [tasks]; 0 without training.
        milliseconds: CPU time per task.
    """

    accuracy: np.ndarray
    nll: np.ndarray
    bins: np.ndarray
    seed: np.ndarray
    milliseconds: np.ndarray


def cell_in(
    path: Path,
    key: str,
    predicts_of: Callable[[], Sequence[Predict]],
    temperature: float,
    batches: Iterable[Episodes],
) -> Cell:
    """Read the scores of a method from a file. If there is no file with the same key, compute and save the scores.

    Args:
        path: the file.
        key: the settings of the method and of the tasks, as text.
        predicts_of: function that returns the predictor of each training run. The predictors take turns over the
            batches, so that each task is predicted once.
        temperature: divisor of the log probabilities.
        batches: the test tasks.
    """
    if path.exists():
        with np.load(path) as saved:
            if str(saved["key"]) == key:
                return Cell(**{each.name: saved[each.name] for each in fields(Cell)})
    cell = _scored(predicts_of(), temperature, batches)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: _save(file, cell, key))
    return cell


def _save(path: Path, cell: Cell, key: str) -> None:
    with path.open("wb") as file:
        np.savez(file, key=np.array(key), **asdict(cell))


def _scored(predicts: Sequence[Predict], temperature: float, batches: Iterable[Episodes]) -> Cell:
    parts, seconds = [], 0.0
    for number, episodes in enumerate(batches):
        run = number % len(predicts)
        started = time.process_time()
        log_probs = predicts[run](episodes.observed())
        seconds += time.process_time() - started
        scores = _scores(scaled(log_probs, temperature), episodes)
        parts.append((*scores, torch.full((episodes.num_tasks,), run)))
    accuracy, nll, bins, seed = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    return Cell(accuracy, nll, bins, seed, np.array(1000 * seconds / len(nll)))


def _scores(log_probs: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Return accuracy [tasks], NLL [tasks] and sums over confidence bins [tasks, bins, 3].

    Args:
        log_probs: predicted log probabilities [tasks, queries, classes].
        episodes: the tasks, with query labels.
    """
    labels, mask = episodes.query_y, episodes.query_mask
    hits = (log_probs.argmax(-1) == labels).to(log_probs.dtype)
    log_prob = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return masked_mean(hits, mask), -masked_mean(log_prob, mask), bin_sums(log_probs.exp(), labels, mask)
