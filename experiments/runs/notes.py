"""One-line notes about unusual data or results of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.errors import how_many
from pyro_metabayes.experiments.cli.choices import rates_of_choices
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tasks import HasNotes
from pyro_metabayes.training.optimisation import idle_rates

FAR_BELOW = 2.0  # nats; about the threshold of a likelihood-ratio test of one parameter at 5%


def print_notes(setup: RunSetup) -> None:
    """Print notes about the data, and about settings train.learning_rates.* without effect."""
    rates, of_choices = setup.config.train.learning_rates, rates_of_choices(setup.config.choices)
    for name in idle_rates(setup.learner, setup.config.train):
        if rates[name] != of_choices.get(name):
            print(f"note: train.learning_rates.{name} has no effect: this learner has no parameter '{name}'")
    if isinstance(source := setup.tasks.source, HasNotes):
        for note in source.notes:
            print(f"note: {note}", flush=True)

    _note_conditional_prior(setup)


def _note_conditional_prior(setup: RunSetup) -> None:
    model, shot = setup.learner.model, setup.config.task.shot
    if isinstance(setup.tasks.source, Groups) and shot and model.given_support:
        print(
            f"note: this run learns a prior conditional on {how_many(shot, 'point')} of a group, not the means and "
            "sds of the groups; to learn these, train with task.shot=0, and set task.shot in the evaluation",
            flush=True,
        )


@dataclass(frozen=True)
class Causes:
    """Possible causes of poor predictions, as text for notes.

    Args:
        classes: causes if predicted classes are no better than chance.
        numbers: causes if predicted numbers are no better than a constant.
    """

    classes: str
    numbers: str


OF_TRAINING = Causes(
    "the training is too short (train.steps), or has diverged (lower train.learning_rate)",
    "the predictors do not help, or the training is too short (train.steps)",
)
OF_EVALUATION = Causes(
    "the changed settings or other data do not suit this run, or it was not trained well; an inner loop may diverge "
    "(lower guide.step_size or guide.num_steps)",
    "the changed settings or other data do not suit this run, or the predictors do not help",
)


CLAIMS = {
    "rows": "the test has new rows of classes that were seen in training; the scores say nothing about new classes",
    "none": "the evaluation uses the training rows; the scores say nothing about new rows or new classes",
}


def note_division(results: Mapping[str, Any]) -> None:
    """Print a note if training and test have the same classes. The scores then say nothing about new classes."""
    if claim := CLAIMS.get(results.get("division") or ""):
        print(f"note: data.split={results['division']}: {claim}")


def note_poor_result(results: Mapping[str, Any], causes: Causes = OF_TRAINING) -> None:
    """Print notes about skipped training steps, and about predictions no better than chance or than a constant."""
    if skipped := results["skipped"]:
        count = f"{skipped} of {results['steps']} steps"
        print(f"note: {count} were skipped: a loss or gradient was not finite (train.on_nan)")
    num_answers = results["way"] + (results["base_classes"] or 0)
    if results["way"] > 1 and results["accuracy"] and results["nll"] > (chance := math.log(num_answers)):
        print(f"note: the NLL is worse than chance ({chance:.3f}). Possible causes: {causes.classes}")
    if constants := results["constant_rmse"]:
        _note_useless_regression(results["rmse"], constants, causes.numbers)


def _note_useless_regression(rmse: float, constants: Mapping[str, float], cause: str) -> None:
    name, best = min(constants.items(), key=lambda item: item[1])
    if round(rmse, 3) >= round(best, 3):
        print(
            f"note: RMSE {rmse:.3f} is no better than that of the {name.replace('_', ' ')} ({best:.3f}). "
            f"Possible causes: {cause}"
        )


def note_low_likelihood(results: Mapping[str, Any]) -> None:
    """Print a note if the log-likelihood of the training groups is far below its closed-form maximum."""
    values = results["log_likelihood"]
    if values and values["learned"] < values["closed_form"] - FAR_BELOW:
        print(
            f"note: the log likelihood of the training groups is {values['learned']:.1f} under the learned prior, "
            f"and its closed-form maximum is {values['closed_form']:.1f}; raise train.steps, or train with task.shot=0"
        )
