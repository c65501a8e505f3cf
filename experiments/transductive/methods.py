"""The methods of experiments.transductive, and their predictors: functions from tasks to log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.episodes import Observed
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.build_learner import build_learner
from pyro_metabayes.experiments.runs.setup import start_at
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.models.backbones.identity import Backbone as Features
from pyro_metabayes.prediction.averages import log_mean_exp
from pyro_metabayes.seeding import noise_of

SAMPLES = 30  # number of draws from a posterior; a point estimate has one
MANY = 5  # number of shots from which on the settings `Method.many` apply
Predict = Callable[[Observed], Tensor]  # predictor; returns log p(y = c | x) [tasks, queries, classes] in nats


@dataclass(frozen=True)
class Method:
    """Method, i.e. a row of the tables.

    Attributes:
        name: name of the row.
        known: whether the method assumes balanced queries. Such a method is scored on balanced queries only.
        candidates: settings of untrained guides. The most accurate candidate on validation classes is chosen.
        tempered: whether a temperature is fitted on validation classes. Learners trained for the NLL need no
            temperature. Rows with published settings have none.
        many: additional settings for tasks with at least MANY shots.
        trained: label of the row of the study that trains the learner. A trained method has no candidates.
        changes: settings of the guide that differ from the training.
        tasks: upper limit of the number of test tasks per column, for a slow method; 0: no limit.
        ours: whether the method is ours, and compared with the best peer.
        peer: whether our methods are compared with this method.
    """

    name: str
    known: bool = False
    candidates: Sequence[str] = ()
    tempered: bool = True
    many: str = ""
    trained: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    tasks: int = 0
    ours: bool = False
    peer: bool = True

    def shown(self, candidate: str, shot: int) -> str:
        """Return the settings of a candidate for tasks with `shot` shots."""
        return f"{candidate} {self.many}".strip() if shot >= MANY else candidate


def untrained(settings: str, bank: Bank, way: int) -> MetaLearner:
    """Build the learner of `experiments.run data=features SETTINGS train.steps=0` on a bank (data set)."""
    config = _config(f"data=features task.way={way} {settings}")
    learner = build_learner(config, bank, BankSampler(bank), None)
    start_at(learner, config.init)
    if isinstance(learner.backbone, Features):
        learner.backbone.centre_on([bank.in_memory[bank.rows("train")]])
    return learner.eval()


@cache
def _config(settings: str) -> Config:
    return config_of(settings.split())


def trained(row: Row, folder: Path, changes: Mapping[str, Any]) -> list[MetaLearner]:
    """Load the trained learners of all seeds of a row, with changed settings of the guide."""
    return [_changed(MetaLearner.load(run), changes) for run in row.folders(folder)]


def _changed(learner: MetaLearner, changes: Mapping[str, Any]) -> MetaLearner:
    specification = deepcopy(learner.specification)
    specification["guide"] |= changes
    changed = MetaLearner.from_specification(specification, learner.frozen)
    changed.load_weights(learner.state_dict())
    return changed.eval()


def predict_of(learner: MetaLearner, samples: int = SAMPLES) -> Predict:
    """Return the predictor of a learner: log probabilities of its posterior predictive, with fixed random numbers."""

    @torch.no_grad()
    def predict(observed: Observed) -> Tensor:
        with noise_of(0):
            _, likelihood = learner.posterior_predictive(learner.embedded(observed), samples)
        return log_mean_exp(ClassPredictions.log_probs_by_query(likelihood))

    return predict
