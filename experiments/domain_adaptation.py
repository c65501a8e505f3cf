"""python -m experiments.domain_adaptation: the gain of transductive inference on an unseen domain, for each domain.

The command runs conf/study/digit_domains.yaml, which has one part per target domain and one row per method. Finished
runs are kept, so the same command continues an interrupted study. The command writes table.md, table.csv and
domains.png. docs/domain-adaptation.md explains them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands

AVERAGE = "average"
NOTE = (
    "Accuracy on the target domain, %, with 95% intervals. One target: mean and interval over the tasks of all seeds. "
    "Average over targets, and differences: interval over seeds by Student's t."
)
Accuracies = Mapping[str, np.ndarray]  # from the name of a target domain to accuracies [seeds, tasks] in per cent


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    name = f"domain adaptation of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, write)


def accuracies_by_method(rows: Sequence[Row], folder: Path) -> dict[str, Accuracies]:
    """Read accuracies in per cent from finished runs, as {method: {target domain: array [seeds, tasks]}}."""
    by_method: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        scores = [np.load(run / "tasks.npz")["accuracy"] for run in row.folders(folder)]
        by_method.setdefault(row.label, {})[row.part] = 100 * np.stack(scores)
    return dict(by_method)


def over_seeds(accuracies: Accuracies) -> np.ndarray:
    """Return the mean accuracy over tasks and target domains of each seed, of shape [seeds]."""
    return np.mean([tasks.mean(1) for tasks in accuracies.values()], axis=0)


def student_half_width(values: np.ndarray) -> float | None:
    """Return the half width of Student's 95% interval of the mean over seeds; None for one seed."""
    if (degrees := len(values) - 1) < 1:
        return None
    from scipy.stats import t  # takes half a second, so --help does not import it

    return float(t.ppf(0.975, degrees) * values.std(ddof=1) / math.sqrt(len(values)))


def cell(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if half_width is None else f" +- {half_width:.1f}")


def score_row(label: str, accuracies: Accuracies) -> dict[str, str]:
    """Return one row of the table: the accuracy of a method on each target domain, and averaged over domains."""
    cells = {target: cell(tasks.mean(), ci95_of(tasks.flatten())) for target, tasks in accuracies.items()}
    average = over_seeds(accuracies)
    return {"": label, **cells, AVERAGE: cell(average.mean(), student_half_width(average))}


def difference_row(label: str, accuracies: Accuracies, baseline: Accuracies) -> dict[str, str]:
    """Return one row of the table: the gain in accuracy of a method over a baseline, paired by seed."""
    gains = {target: tasks.mean(1) - baseline[target].mean(1) for target, tasks in accuracies.items()}
    gains[AVERAGE] = over_seeds(accuracies) - over_seeds(baseline)
    return {"": label, **{name: cell(gain.mean(), student_half_width(gain), "+") for name, gain in gains.items()}}


def tables(
    study: Mapping[str, Any], methods: Mapping[str, Accuracies]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the table of accuracies, and the table of gains for each [method, baseline] in `pairs` of the study."""
    pairs = [(method, baseline) for method, baseline in study["pairs"] if method in methods and baseline in methods]
    gains = [
        difference_row(f"{method} less {baseline}", methods[method], methods[baseline]) for method, baseline in pairs
    ]
    return [score_row(label, accuracies) for label, accuracies in methods.items()], gains


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the tables (with the command that reruns each row) and the plot."""
    methods = accuracies_by_method(rows, folder)
    scores, gains = tables(study, methods)
    page = f"{NOTE}\n\n{markdown_table(scores)}\n\n{markdown_table(gains)}\n\n{commands(rows)}\n"
    save_tables(folder, page, [*scores, *gains])
    print(f"{text_table(scores)}\n\n{text_table(gains)}\n")
    print(f"table.md, table.csv and plot: {draw(methods, folder / 'domains.png')}")


def draw(methods: Mapping[str, Accuracies], path: Path) -> Path:
    """Plot the accuracies: one group of bars per target domain and one for their average.

    Each method has one colour, each seed one point.
    """
    figure, (axis,) = new_figure(1)
    targets = [*next(iter(methods.values())), AVERAGE]
    figure.set_size_inches(1.6 * len(targets) + 1, 3.4)
    for number, (label, accuracies) in enumerate(methods.items()):
        by_target = [tasks.mean(1) for tasks in accuracies.values()] + [over_seeds(accuracies)]
        places = np.arange(len(by_target)) + 0.7 * ((number + 0.5) / len(methods) - 0.5)
        means, width = [seeds.mean() for seeds in by_target], 0.7 / len(methods)
        axis.bar(places, means, width, color=f"C{number}", alpha=0.45, label=label)
        for seeds, place in zip(by_target, places, strict=True):
            axis.plot([place] * len(seeds), seeds, "o", ms=3, color=f"C{number}")
    axis.set_xticks(range(len(targets)), targets)
    axis.set(ylabel="accuracy on the target, %", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=len(methods), frameon=False, fontsize=8)
    return save_figure(figure, path)


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "domain_adaptation")
