"""Predictions of a run on data=groups for a file with rows of new groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_metabayes.data.sources.chosen_columns import ChosenColumns, Rows, chosen_columns
from pyro_metabayes.data.sources.column_notes import notes_of_units
from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.sources.header import header_of, matching
from pyro_metabayes.data.sources.roles import Roles
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.exact.estimation_errors import EstimationErrors
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.effects.widening import errors_of_run, widened
from pyro_metabayes.experiments.runs.grouped_data import groups_in
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.numbers import NumberPrediction


def predicted_rows(folder: Path, file: Path) -> list[dict[str, str]]:
    """Return one row per row of the file with a blank response: group, predictors, mean, sd, lower and upper.

    Raises:
        UsageError: the run is not on data=groups, or the file has no row with a blank response.
    """
    setup = restore_run(folder, saved_config(folder, ["device=cpu"]))
    groups = groups_in(setup.tasks.source, setup.config)
    chosen = columns_of(groups.roles, file)
    read = chosen.read(_setting(setup, "missing", "refuse"), _setting(setup, "decimal", "point"), groups.levels, True)
    asked = read.values[:, -1].isnan()
    if not asked.any():
        raise UsageError(f"expected rows with a blank '{chosen.response}' in {file}, got none; add rows to predict")
    rows = groups.with_indicators(read)
    compared = rows.without_offset(groups.family).values
    for note in (*read.notes, *notes_of_units(compared, groups.scales, groups.scales.columns, groups.family)):
        print(f"note: {note}")
    _note_known_groups(read, groups, chosen.group)
    points, errors = groups.inputs_and_labels(rows), errors_of_run(groups, setup.learner)
    table: dict[int, dict[str, str]] = {}
    for name in dict.fromkeys(read.keys):
        of_group = torch.tensor([key == name for key in read.keys])
        places = (of_group & asked).nonzero().flatten().tolist()
        if places:
            known, query = points[of_group & ~asked], points[of_group & asked]
            prediction = in_units(groups, setup.learner, known, query, errors)
            prediction = with_offset(prediction, None if groups.family != "gaussian" else read.offset, places)
            for number, place in enumerate(places):
                table[place] = _row(chosen, read, place, prediction, number)
    return [table[place] for place in sorted(table)]


def columns_of(roles: Roles, file: Path) -> ChosenColumns:
    """Find the columns of the run in another file, which may lack the column of groups."""
    there = header_of(file, roles.read).names
    return chosen_columns(file, roles.in_header(), grouped=bool(matching(roles.group, there)))


def in_units(
    groups: Groups, learner: MetaLearner, support: Tensor, query: Tensor, errors: EstimationErrors | None
) -> NumberPrediction:
    """Predict the labels of the query points of one group, given its support points, in the units of the file.

    Args:
        groups: the groups of the run, whose scales standardise the columns.
        learner: the trained learner.
        support: support points: standardised inputs, and the label in the last column [points, inputs + 1].
        query: query points in the same form; their labels are ignored.
        errors: errors of the estimated parameters, included in sd and interval; None to ignore errors.
    """
    scales = groups.scales
    prediction = learner.predict(support[:, :-1], support[:, -1], query[:, :-1])
    assert isinstance(prediction, NumberPrediction)
    if errors is not None:
        x, y = support[:, :-1].unsqueeze(0), support[:, -1:].unsqueeze(0)
        task = Observed(support_x=x, support_y=y, query_x=query[:, :-1].unsqueeze(0))
        prediction = widened(prediction, errors.of_queries(groups.with_equal_precision(task)))
    mean, sd = scales.mean[-1], scales.sd[-1]
    mean_y, sd_y, lower, upper = (value[:, 0].double() for value in prediction)
    return NumberPrediction(mean + sd * mean_y, sd * sd_y, mean + sd * lower, mean + sd * upper)


def with_offset(prediction: NumberPrediction, offset: Tensor | None, places: Sequence[int]) -> NumberPrediction:
    """Add the offset of each row to the predicted response of the row. `places` are the numbers of the rows."""
    if offset is None:
        return prediction
    added = offset[list(places)]
    mean, sd, lower, upper = prediction
    return NumberPrediction(mean + added, sd, lower + added, upper + added)


def _setting(setup: RunSetup, name: str, default: str) -> str:
    return str(setup.config.data.get(name, default))


def _note_known_groups(read: Rows, groups: Groups, column: str | None) -> None:
    """Print a note if groups of the run are in the file, but have no row with a response there."""
    labelled = {key for key, label in zip(read.keys, read.values[:, -1].tolist(), strict=True) if label == label}
    unknown = sorted((set(read.keys) & set(groups.names)) - labelled) if column else []
    if unknown:
        print(
            f"note: {how_many(len(unknown), 'group of the run has', 'groups of the run have')} no row with a response "
            f"in this file, such as '{unknown[0]}'; predictions use this file alone, so add rows of such groups to it"
        )


def _row(chosen: ChosenColumns, read: Rows, place: int, prediction: NumberPrediction, number: int) -> dict[str, str]:
    """Format one row of the table: group, predictors as the regression uses them, and prediction.

    A column of the file with the name of a prediction, such as "mean", is titled "mean of the file".

    Args:
        chosen: the columns of the file.
        read: the rows of the file.
        place: the index of the row in the file.
        prediction: the predictions for the rows of one group.
        number: the index of the row in `prediction`.
    """
    group = {} if chosen.group is None else {chosen.group: read.keys[place]}
    group |= {} if read.inner is None else {str(chosen.inner): read.inner[place]}
    x = dict(zip(read.features, read.values[place].tolist(), strict=False))
    beside = {chosen.weights: read.weights, chosen.offset: read.offset}
    x |= {str(name): column[place].item() for name, column in beside.items() if column is not None}
    inputs = {name: f"{value:g}" for name, value in x.items() if name != "intercept"}
    predicted = {name: f"{value[number].item():.6g}" for name, value in prediction._asdict().items()}
    return {
        f"{name} of the file" if name in predicted else name: of for name, of in (group | inputs).items()
    } | predicted
