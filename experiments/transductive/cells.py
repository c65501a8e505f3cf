"""The scores of one method on the tasks of one column; finished ones are kept in files."""

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
    """Scores of T tasks.

    Attributes:
        accuracy: share of the queries whose most probable class is right [T].
        nll: negative log-likelihood [T], nats per query.
        bins: bin sums of confidences [T, B, 3], for the calibration error.
        seed: number of the training run whose learner has answered [T]; 0 without training.
        milliseconds: of CPU per task.
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
    """The cell in a file, which is computed if the file holds none of these settings.

    Args:
        path: the file.
        key: the settings of the method and of the tasks.
        predicts_of: makes one function for each training run. They take the batches in turn, so that every task is
            answered once.
        temperature: by which log probabilities are divided.
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
    """Accuracy [T], NLL [T] and bin sums [T, B, 3] of log probabilities [T, Q, C]."""
    labels, mask = episodes.query_y, episodes.query_mask
    hits = (log_probs.argmax(-1) == labels).to(log_probs.dtype)
    log_prob = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return masked_mean(hits, mask), -masked_mean(log_prob, mask), bin_sums(log_probs.exp(), labels, mask)
