"""Predictions of classes for a labelled support set and a query set, as rows of a table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.predict.inputs import Reader
from pyro_metabayes.experiments.runs.restore_run import finished_checkpoint
from pyro_metabayes.inference.capabilities import HasBaseClasses, has
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import class_entropy
from pyro_metabayes.prediction.probabilities import Prediction

PRINTED_COLUMNS = ("file", "row", "predicted", "probability", "spread", "entropy")


def predicted_classes(folder: Path, config: Config, support: Path, query: Path) -> list[dict[str, str]]:
    """Return one row per query: file or row, predicted class, its probability and spread, entropy, all probabilities.

    Args:
        folder: the folder of a run on classes.
        config: the settings of the run.
        support: folder of images or file of arrays with the labelled support set.
        query: folder of images or file of arrays with the query set.

    Raises:
        UsageError: the run does not predict the classes of a support set, or the inputs do not fit the run.
    """
    finished_checkpoint(folder, config)
    learner = MetaLearner.load(folder)
    if learner.num_targets or learner.guide.needs_shared_classes or has(learner.model, HasBaseClasses):
        raise UsageError(
            f"expected a run on data=groups, or a run whose classes are those of a support set, got guide="
            f"{config.choices.get('guide')} on data={config.choices.get('data')}; use MetaLearner.predict in Python"
        )
    reader = Reader.of(config, learner.input_shape)
    x, labels = reader.support(support)
    names, y = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise UsageError(
            f"expected support points of at least 2 classes in {support}, got only '{names[0]}'; add a class"
        )
    queries = reader.query(query)
    prediction = learner.predict(x, y, queries.x)
    assert isinstance(prediction, Prediction)  # the labels are classes
    if learner.guide.transductive and len(queries.names) > 1:
        print(
            f"note: guide={config.choices.get('guide')} is transductive: the predictions depend on all "
            f"{len(queries.names)} queries together",
            file=sys.stderr,
        )
    return _rows(prediction, [str(name) for name in names], queries.column, queries.names)


def _rows(prediction: Prediction, classes: list[str], column: str, queries: list[str]) -> list[dict[str, str]]:
    probabilities, spread = prediction
    entropy, best = class_entropy(probabilities.log()), probabilities.argmax(-1)
    values = torch.stack(
        [*(value.gather(1, best.unsqueeze(1)).squeeze(1) for value in (probabilities, spread)), entropy], 1
    )
    names = ["probability", "spread", "entropy", *(f"p({name})" for name in classes)]
    numbers = torch.cat((values, probabilities), 1).tolist()
    return [
        {column: query, "predicted": classes[predicted]}
        | {name: f"{number:.6g}" for name, number in zip(names, row, strict=True)}
        for query, predicted, row in zip(queries, best.tolist(), numbers, strict=True)
    ]
