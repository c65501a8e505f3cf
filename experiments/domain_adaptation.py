"""python -m experiments.domain_adaptation: each domain is left out in turn; what does inference without labels gain?

Runs conf/study/digit_domains.yaml: its parts are targets, its rows methods. Finished runs are kept, so an interrupted
study goes on when it is called again. Leaves table.md, table.csv and domains.png; docs/domain-adaptation.md reads them.
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
from scipy.stats import t

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands

AVERAGE = "average"
NOTE = (
    "Accuracy on the target, %. Of one target: mean over all minibatches of all seeds, and its 95% interval. Of the "
    "average over targets, and of differences: the 95% interval of Student's t over seeds."
)
Accuracies = Mapping[str, np.ndarray]  # by target: [seeds, tasks]


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    name = f"domain adaptation of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, write)


def accuracies(rows: Sequence[Row], folder: Path) -> dict[str, Accuracies]:
    """By method, over the targets whose runs are all finished."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        tasks = [np.load(row.folder(folder, seed) / "tasks.npz")["accuracy"] for seed in range(row.seeds)]
        found.setdefault(row.label, {})[row.part] = 100 * np.stack(tasks)
    return dict(found)


def over_seeds(its: Accuracies) -> np.ndarray:
    """The average over targets of each seed."""
    return np.mean([tasks.mean(1) for tasks in its.values()], axis=0)


def student(values: np.ndarray) -> float | None:
    """Half width of the 95% interval of a mean over seeds; None of one seed."""
    if (degrees := len(values) - 1) < 1:
        return None
    return float(t.ppf(0.975, degrees) * values.std(ddof=1) / math.sqrt(len(values)))


def cell(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if half_width is None else f" +- {half_width:.1f}")


def line_of(label: str, its: Accuracies) -> dict[str, str]:
    """A method on each target, and on their average."""
    each = {target: cell(tasks.mean(), ci95_of(tasks.flatten())) for target, tasks in its.items()}
    average = over_seeds(its)
    return {"": label, **each, AVERAGE: cell(average.mean(), student(average))}


def difference(label: str, its: Accuracies, less: Accuracies) -> dict[str, str]:
    """What a method gains, seed by seed."""
    each = {target: tasks.mean(1) - less[target].mean(1) for target, tasks in its.items()}
    each[AVERAGE] = over_seeds(its) - over_seeds(less)
    return {"": label, **{name: cell(gain.mean(), student(gain), "+") for name, gain in each.items()}}


def tables(
    study: Mapping[str, Any], found: Mapping[str, Accuracies]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Every method, and the pairs that the study asks for, `[better, than]`."""
    pairs = [(one, other) for one, other in study["pairs"] if one in found and other in found]
    gains = [difference(f"{one} less {other}", found[one], found[other]) for one, other in pairs]
    return [line_of(label, its) for label, its in found.items()], gains


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """The tables, with the command of every row, and the picture."""
    found = accuracies(rows, folder)
    scores, gains = tables(study, found)
    page = f"{NOTE}\n\n{markdown_table(scores)}\n\n{markdown_table(gains)}\n\n{commands(rows)}\n"
    save_tables(folder, page, [*scores, *gains])
    print(f"{text_table(scores)}\n\n{text_table(gains)}\n")
    print(f"table.md, table.csv and picture: {draw(found, folder / 'domains.png')}")


def draw(found: Mapping[str, Accuracies], path: Path) -> Path:
    """A group of points for each target and for their average, a colour for each method; a point is a seed."""
    figure, (axis,) = new_figure(1)
    targets = [*next(iter(found.values())), AVERAGE]
    figure.set_size_inches(1.6 * len(targets) + 1, 3.4)
    for number, (label, its) in enumerate(found.items()):
        each = [tasks.mean(1) for tasks in its.values()] + [over_seeds(its)]
        place = np.arange(len(each)) + 0.7 * ((number + 0.5) / len(found) - 0.5)
        axis.bar(place, [seeds.mean() for seeds in each], 0.7 / len(found), color=f"C{number}", alpha=0.45, label=label)
        for seeds, at in zip(each, place, strict=True):
            axis.plot([at] * len(seeds), seeds, "o", ms=3, color=f"C{number}")
    axis.set_xticks(range(len(targets)), targets)
    axis.set(ylabel="accuracy on the target, %", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False, fontsize=8)
    return save_figure(figure, path)


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "domain_adaptation")
