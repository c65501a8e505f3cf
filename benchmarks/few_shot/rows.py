"""Methods of a comparison that the command line names: checkpoints, FewShotClassifier, functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from benchmarks.few_shot.tasks import Cell
from benchmarks.few_shot.tuning import Tuning
from pyro_metabayes import MetaLearner
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.transductive.methods import predict_of
from pyro_metabayes.sklearn import FewShotClassifier

Row = Callable[[Observed], Tensor]


class Method(Protocol):
    """Method of a comparison."""

    @property
    def name(self) -> str: ...

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        """Return the predictor for features of this dimension and tasks of this cell.

        Settings may be chosen on the tasks `tuning`.
        """
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A learner from a file."""

    name: str
    path: Path
    settings: dict[str, Any] = field(default_factory=dict)  # changed settings of the guide

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Parse FILE[,guide.SETTING=VALUE ...]."""
        path, *changes = text.split(",")
        settings = values_of(changes, "guide.")
        return cls(" ".join([Path(path).name, *changes]), Path(path), settings)

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        """Return the predictor of the learner, rebuilt for this dimension and way.

        The shapes of the weights must not depend on dimension and way.
        """
        saved = MetaLearner.load(self.path)
        specification = deepcopy(saved.specification)
        specification |= {"input_shape": [num_features], "num_classes": cell.way}
        specification["guide"] |= self.settings
        learner = MetaLearner.from_specification(specification, saved.frozen)
        learner.load_weights(saved.state_dict())
        return predict_of(learner.eval())


@dataclass(frozen=True)
class Classifier:
    """FewShotClassifier with some arguments."""

    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Classifier:
        """Parse ARGUMENT=VALUE,..."""
        arguments = values_of([part for part in text.split(",") if part], "")
        return cls(f"FewShotClassifier({text})", arguments)

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        try:
            classifier = FewShotClassifier(**self.arguments)
        except TypeError as error:
            raise UsageError(f"expected arguments of FewShotClassifier, got {self.arguments}: {error}") from None

        def one(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
            probabilities = torch.from_numpy(classifier.fit(x.numpy(), y.numpy()).predict_proba(query.numpy()))
            return probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()

        def row(observed: Observed) -> Tensor:
            tasks = zip(observed.support_x, observed.support_y, observed.query_x, strict=True)
            return torch.stack([one(*task) for task in tasks])

        return row


@dataclass(frozen=True)
class Function:
    """A function MODULE:NAME from Observed to log probabilities."""

    name: str
    function: Row

    @classmethod
    def parse(cls, text: str) -> Function:
        """Parse MODULE:NAME."""
        module, _, name = text.partition(":")
        try:
            return cls(text, getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"expected --function MODULE:NAME to name a function, got {text}: {error}") from None

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        return self.function


def values_of(changes: list[str], prefix: str) -> dict[str, Any]:
    """Parse texts of the form {prefix}NAME=VALUE to {NAME: value}. Each value is read as YAML."""
    settings = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.startswith(prefix):
            raise UsageError(f"expected {prefix}NAME=VALUE, got '{change}'")
        settings[key.removeprefix(prefix)] = yaml.safe_load(value)
    return settings
