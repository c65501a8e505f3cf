"""Notes, one line each: what is remarkable about the data or the result of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro_metabayes.experiments.cli.choices import rates_of_choices
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tasks import HasNotes
from pyro_metabayes.training.optimisation import idle_rates


def print_notes(setup: RunSetup) -> None:
    """What the source of the tasks says about its data, and rates of the user that have no effect."""
    rates, of_choices = setup.config.train.learning_rates, rates_of_choices(setup.config.choices)
    for name in idle_rates(setup.learner, setup.config.train):
        if rates[name] != of_choices.get(name):
            print(f"note: no parameter '{name}' in this setting: its rate in train.learning_rates has no effect")
    if isinstance(source := setup.tasks.source, HasNotes):
        for note in source.notes:
            print(f"note: {note}", flush=True)


@dataclass(frozen=True)
class Causes:
    """Why predictions may be poor: of classes no better than chance, of numbers no better than a constant."""

    classes: str
    numbers: str


OF_TRAINING = Causes(
    "too few steps, or diverged (lower train.learning_rate)",
    "the predictors do not help, or the training is too short (train.steps)",
)
OF_EVALUATION = Causes(
    "the changed settings or other data do not suit this run, or it was not trained well; an inner loop may diverge "
    "(lower guide.step_size or guide.num_steps)",
    "the changed settings or other data do not suit this run, or the predictors do not help",
)


def note_poor_result(results: Mapping[str, Any], causes: Causes = OF_TRAINING) -> None:
    """Notes about skipped steps, and about predictions no better than those of a constant."""
    if skipped := results["skipped"]:
        print(f"{skipped} of {results['steps']} steps were skipped: a loss or gradient was not finite (train.on_nan)")
    num_answers = results["way"] + (results["base_classes"] or 0)
    if results["way"] > 1 and results["accuracy"] and results["nll"] > (chance := math.log(num_answers)):
        print(f"worse than chance (NLL {chance:.3f}): {causes.classes}")
    if constants := results["constant_rmse"]:
        _note_useless_regression(results["rmse"], constants, causes.numbers)


def _note_useless_regression(rmse: float, constants: Mapping[str, float], cause: str) -> None:
    name, best = min(constants.items(), key=lambda item: item[1])
    if round(rmse, 3) >= round(best, 3):
        print(f"note: no better than the {name.replace('_', ' ')} (RMSE {rmse:.3f}, against {best:.3f}): {cause}")
