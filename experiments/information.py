"""python -m experiments.information: the information of posteriors about their query sets, and the generalisation gap.

The command runs conf/study/information.yaml with eval.information=true. The study has sib with several KL weights, each
evaluated after K = 0, ..., 7 inner steps, and other guides. Finished runs are kept, so the same command continues an
interrupted study. The command writes table.md, table.csv and information.png. docs/information.md defines the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, number, per_cent, save_tables
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row, read
from pyro_metabayes.experiments.studies.tables import commands

NATS = {
    "prior": "KL to the prior",
    "refitted_prior": "to the refitted prior",
    "other_tasks": "to the other tasks",
    "second_set": "to q of the second set",
    "below": "at least",
}
Results = Mapping[str, Any]


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    name = f"information of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, write)


def by_steps(row: Row, folder: Path) -> list[list[Results]]:
    """Return the results of a row grouped by the number of inner steps K, in increasing order of K.

    Each group holds one results.json per seed.
    """
    results_by_steps: dict[int, list[Results]] = {}
    for run in row.folders(folder):
        for results in [read(run), *map(read, sorted(run.glob("evaluations/*")))]:
            results_by_steps.setdefault(steps_of(results), []).append(results)
    return [results_by_steps[steps] for steps in sorted(results_by_steps)]


def steps_of(results: Results) -> int:
    """Return the number of inner steps K from results.json; 0 for a guide without inner steps."""
    return int(results["config"]["guide"].get("num_steps", 0))


def mean_of(seeds: Sequence[Results], *path: str) -> float | None:
    """Return the mean over seeds of a metric; None if a seed does not have the metric.

    Args:
        seeds: the contents of results.json, one per seed.
        path: nested keys of results.json, such as "accuracy", "mean".
    """
    values: list[Any] = list(seeds)
    for name in path:
        values = [None if value is None else value[name] for value in values]
    return None if None in values else float(np.mean(values))


def table_row(row: Row, seeds: Sequence[Results]) -> dict[str, str]:
    gap = mean_of(seeds, "information", "gap", "mean")
    ci95 = mean_of(seeds, "information", "gap", "ci95")
    return {
        "": row.label,
        "K": str(steps_of(seeds[0])),
        "accuracy %": per_cent(mean_of(seeds, "accuracy", "mean") or 0.0, mean_of(seeds, "accuracy", "ci95")),
        **{title: number(mean_of(seeds, "information", name), 1) for name, title in NATS.items()},
        "gap, nats per query": "-" if gap is None else f"{gap:+.4f} +- {ci95:.4f}",
        "bound": number(mean_of(seeds, "information", "bound"), 2),
        "tightness": number(mean_of(seeds, "information", "tightness"), 4),
    }


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the table (with the command that reruns each row) and the plot."""
    entries = [(row, seeds) for row in rows for seeds in by_steps(row, folder)]
    table = [table_row(row, seeds) for row, seeds in entries]
    page = f"{markdown_table(table)}\n\n{commands(rows)}\n"
    save_tables(folder, page, table)
    print(text_table(table))
    print(f"table.md, table.csv and plot: {draw(rows, folder)}")


PANELS = {
    "KL(q, p_psi), nats per task": ("information", "prior"),
    "KL of q to that of the second set": ("information", "second_set"),
    "gap, nats per query": ("information", "gap", "mean"),
    "bound on the gap": ("information", "bound"),
    "accuracy": ("accuracy", "mean"),
}


def draw(rows: Sequence[Row], folder: Path) -> Path:
    """Plot information, generalisation gap, bound on the gap, and accuracy against the number of inner steps K.

    The plot has one line per row that was evaluated at several K.
    """
    figure, axes = new_figure(len(PANELS))
    figure.set_size_inches(2.9 * len(PANELS) + 1.4, 3.0)
    for row in rows:
        steps = [seeds for seeds in by_steps(row, folder) if mean_of(seeds, "information", "least") is not None]
        if len(steps) >= 2:
            _draw_learner(axes, row.label, steps)
    for axis in axes[:2]:
        axis.set_yscale("symlog", linthresh=0.1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, folder / "information.png")


def _draw_learner(axes: Sequence[Any], label: str, steps: Sequence[Sequence[Results]]) -> None:
    """Plot the metrics of one learner against K, one line per panel.

    Args:
        axes: the panels, one per metric.
        label: the name of the learner.
        steps: the results for each number of inner steps K, each with one results.json per seed.
    """
    places = [steps_of(seeds[0]) for seeds in steps]
    for axis, (title, path) in zip(axes, PANELS.items(), strict=True):
        values = [mean_of(seeds, *path) for seeds in steps]
        spread = [mean_of(seeds, "information", "gap", "ci95") for seeds in steps] if "gap" in path else None
        axis.errorbar(places, values, yerr=spread, fmt="o-", ms=3, label=label)
        axis.set(xlabel="inner steps K")
        axis.set_title(title, fontsize=9)


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "information")
