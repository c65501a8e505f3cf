"""Comparison of all methods on one bank (data set): choices on validation classes, scores on test classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources import features
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.transductive.cells import Cell, cell_in
from pyro_metabayes.experiments.transductive.choices import Choice, chosen
from pyro_metabayes.experiments.transductive.columns import Column, columns_of
from pyro_metabayes.experiments.transductive.methods import Method, Predict, predict_of, trained, untrained


@dataclass(frozen=True)
class Scored:
    """Results of all methods on one bank (data set). A column of the tables is a kind of tasks, such as 1-shot tasks.

    Attributes:
        cells: scores by method and column.
        choices: chosen settings by method.
        marginals: mean shares of the classes among the queries, for each column with imbalanced queries.
    """

    cells: Mapping[str, Mapping[str, Cell]]
    choices: Mapping[str, Choice]
    marginals: Mapping[str, Sequence[float]]


def bank_file(folder: Path, name: str) -> Path:
    return folder / "banks" / f"{name}.npz"


def file_name(name: str) -> str:
    """Convert the name of a method or column to a file name."""
    return re.sub(r"[^a-z0-9.=]+", "_", name.lower())


@dataclass(frozen=True)
class Comparison:
    """Comparison of all methods on one bank (data set).

    Attributes:
        folder: folder that keeps all results.
        name: name of the bank.
        study: content of conf/study/transductive.yaml.
        rows: rows of the study with the trained learners, by label.
        most_tasks: upper limit of all numbers of tasks.
    """

    folder: Path
    name: str
    study: Mapping[str, Any]
    rows: Mapping[str, Row]
    most_tasks: int

    def run(self, methods: Sequence[Method]) -> Scored:
        """Choose the settings of all methods on validation classes, and score the methods on all kinds of test tasks.

        A method that assumes balanced queries is scored on tasks with balanced queries only.
        """
        bank, columns = features.load(str(bank_file(self.folder, self.name))), columns_of(self.study, self.name)
        cells, choices = {}, {}
        for method in methods:
            used = [column for column in columns if column.balanced or not method.known]
            choices[method.name] = choice = self._choice(method, bank, used)
            cells[method.name] = {column.name: self._cell(method, choice, bank, column) for column in used}
            print(f"{self.name}: {method.name}", flush=True)
        return Scored(cells, choices, {each.name: each.marginal(bank) for each in columns if not each.balanced})

    def _choice(self, method: Method, bank: Bank, columns: Sequence[Column]) -> Choice:
        candidates = method.candidates or [""]
        if len(candidates) == 1 and not method.tempered:
            return Choice(candidates[0], 1.0)

        def predict(candidate: str, column: Column) -> Predict:
            return self._predicts(method, candidate, bank, column)[0]

        path = self.folder / "choices" / self.name / f"{file_name(method.name)}.json"
        tasks = self._tasks(method, "choosing")
        choice = chosen(path, candidates, predict, bank, columns, tasks)
        return choice if method.tempered else replace(choice, temperature=1.0)

    def _cell(self, method: Method, choice: Choice, bank: Bank, column: Column) -> Cell:
        path = self.folder / "cells" / self.name / file_name(column.name) / f"{file_name(method.name)}.npz"
        training = self.rows[method.trained].command if method.trained else ""
        settings = f"{method.shown(choice.candidate, column.shape.shot)} {training} {dict(method.changes)}"
        tasks = self._tasks(method, "tasks")
        key = f"{settings}, temperature {choice.temperature}, {tasks} tasks of {column.shape!r}"
        return cell_in(
            path,
            key,
            lambda: self._predicts(method, choice.candidate, bank, column),
            choice.temperature,
            column.tasks(bank, "test", tasks),
        )

    def _predicts(self, method: Method, candidate: str, bank: Bank, column: Column) -> list[Predict]:
        """Return one predictor per training run; a single predictor for a method without training."""
        if method.trained:
            return [predict_of(each) for each in trained(self.rows[method.trained], self.folder, method.changes)]
        return [predict_of(untrained(method.shown(candidate, column.shape.shot), bank, column.shape.way))]

    def _tasks(self, method: Method, name: str) -> int:
        number = min(int(self.study[name]), self.most_tasks)
        return min(number, method.tasks) if method.tasks else number
