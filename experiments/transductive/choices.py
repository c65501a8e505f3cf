"""Choice of the settings and the temperature of a method on validation classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.experiments.transductive.columns import Column
from pyro_metabayes.experiments.transductive.methods import Predict
from pyro_metabayes.recalibration.temperature import fitted_temperature
from pyro_metabayes.storage.checkpoint import write_atomically

Answers = tuple[Tensor, Tensor]  # log probabilities [queries, classes] and labels [queries], over all columns


@dataclass(frozen=True)
class Choice:
    """Chosen settings of a method on a bank (data set of features).

    Attributes:
        candidate: settings of the guide; empty for a trained method.
        temperature: divisor of the log probabilities.
    """

    candidate: str
    temperature: float


def chosen(
    path: Path,
    candidates: Sequence[str],
    predict_of: Callable[[str, Column], Predict],
    bank: Bank,
    columns: Sequence[Column],
    tasks: int,
) -> Choice:
    """Choose the most accurate candidate on validation tasks, and the temperature at which it has the smallest NLL.

    Args:
        path: file that keeps the choice.
        candidates: the candidates, each a text of settings of the guide.
        predict_of: function that returns the predictor of a candidate in a column.
        bank: the data set, whose validation classes are used.
        columns: the columns of the tables; the tasks of all columns have the same weight.
        tasks: number of tasks per column.
    """
    key = json.dumps([list(candidates), [column.name for column in columns], tasks])
    if path.exists() and (saved := json.loads(path.read_text()))["key"] == key:
        return Choice(**saved["choice"])
    answers = {candidate: _answers(partial(predict_of, candidate), bank, columns, tasks) for candidate in candidates}
    best = max(answers, key=lambda candidate: _accuracy(answers[candidate]))
    choice = Choice(best, fitted_temperature(*answers[best]))
    text = json.dumps({"key": key, "choice": asdict(choice)}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(text))
    return choice


def _answers(predict_in: Callable[[Column], Predict], bank: Bank, columns: Sequence[Column], tasks: int) -> Answers:
    log_probs, labels = [], []
    for column in columns:
        predict = predict_in(column)
        for episodes in column.tasks(bank, "val", tasks):
            log_probs.append(predict(episodes.observed()).flatten(0, 1))
            labels.append(episodes.query_y.flatten())
    return torch.cat(log_probs), torch.cat(labels)


def _accuracy(answers: Answers) -> float:
    log_probs, labels = answers
    return (log_probs.argmax(-1) == labels).double().mean().item()
