"""Tables of a study, with one row per row of the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.diagnostics.collapse_metrics import COLLAPSE, with_information
from pyro_metabayes.evaluation.batch_scores import GROUP
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.tables import per_cent, without_old_joint
from pyro_metabayes.experiments.studies.study import Row

EARLY = 1000  # step at which the sd of the prior is shown, in addition to the last step
COLUMNS = (  # title, key of results.json, digits
    ("NLL", "nll", 3),
    ("joint NLL", "joint_nll", 3),
    ("ECE", "ece", 3),
    ("MSE", "mse", 4),
    ("MSE of the true posterior mean", "oracle_mse", 4),
    ("sd / true", "sd_ratio", 3),
    ("training sd / true", "training_sd_ratio", 3),
    ("true share in 90%", "coverage90_of_truth", 3),
    ("KL(true, fit)", "kl_from_truth", 3),
    ("KL(fit, true)", "kl_to_truth", 3),
    ("KL(q, p)", "kl", 3),
    ("active weights", "active_dimensions", 0),
    ("mutual information", "mutual_information", 3),
    ("sd / mean of weights", "relative_sd", 3),
    ("sd of logits", "logit_sd", 3),
    ("disagreement", "disagreement", 3),
)
ACCURACIES = {"accuracy %": "accuracy", "of mean weights": "accuracy_of_mean", "of one draw": "accuracy_of_sample"}


def table_of(rows: Sequence[Row], study: Path) -> list[dict[str, str]]:
    """Return the metrics of finished rows as a table, without columns in which no row has a value."""
    table = [row_of(row, study) for row in rows]
    used = [name for name in table[0] if any(cells[name] != "-" for cells in table)]
    return [{name: cells[name] for name in used} for cells in table]


def row_of(row: Row, study: Path) -> dict[str, str]:
    """Return one row of the table: the mean of each metric over seeds, with the range if there are several seeds."""
    folders, results = row.folders(study), row.results(study)
    cells = {"": row.label, "seeds": str(row.seeds), **_accuracies(folders, results)}
    for title, name, digits in COLUMNS:
        cells[title] = spread([without_old_joint(result)[name] for result in results], digits)
    cells[f"sd / mean at step {EARLY}"] = spread([relative_sd_at(folder, EARLY) for folder in folders], 3)
    cells["information, nats"] = spread([result.get("prior_information") for result in results], 3)
    cells["prior"] = _agreed(results)
    return cells


def spread(values: Sequence[float | None], digits: int) -> str:
    """Format the mean, lowest and highest value over seeds as "0.53 (0.51 to 0.55)"; a dash if all values are None."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    mean = f"{np.mean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def _accuracies(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return accuracies with 95% intervals over the tasks of all seeds; dashes for a regression.

    The three predictions average over the posterior of w, use its mean, or use one draw.
    """
    if results[0]["accuracy"] is None:
        return dict.fromkeys(ACCURACIES, "-")
    cells, archives = {}, [np.load(folder / "tasks.npz") for folder in folders]
    groups = np.concatenate([archive[GROUP] for archive in archives]) if GROUP in archives[0] else None
    for column, name in ACCURACIES.items():
        tasks = np.concatenate([archive[name] for archive in archives])
        cells[column] = per_cent(tasks.mean(), ci95_of(tasks, groups))
    return cells


def verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """Return "collapsed", "alive" or "-" if all seeds agree, else a text such as "1 of 3 collapsed".

    The range of the mutual information of labels and weights follows, such as "collapsed, 0.031 to 0.046".
    """
    return with_information(_agreed(results), results)


def _agreed(results: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [result["collapsed"] for result in results]
    agreed = len(set(verdicts)) == 1
    return COLLAPSE[verdicts[0]] if agreed else f"{sum(map(bool, verdicts))} of {len(verdicts)} collapsed"


def relative_sd_at(folder: Path, step: int) -> float | None:
    """Return relative_sd (sd of the prior / its mean) at a step of metrics.jsonl; None if the step was not logged."""
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        if (logged := json.loads(line))["step"] == step:
            value: float | None = logged["relative_sd"]
            return value
    return None


def commands(rows: Sequence[Row]) -> str:
    """Return the shell commands of the rows as a Markdown code block."""
    return "\n".join(["```sh", *(f"{row.command}  # {row.label}" for row in rows), "```"])
