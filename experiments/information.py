"""python -m experiments.information: the information of posteriors about their query sets, and the generalisation gap.

The command runs conf/study/information.yaml with eval.information=true. The study has sib with several KL weights, each
evaluated after K = 0, ..., 7 inner steps, and other guides. Finished runs are kept, so the same command continues an
interrupted study. The command writes table.md, table.csv and information.png. docs/information.md defines the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.comparison import ci95_of_runs, mean_and_ci95, mean_of_runs
from pyro_metabayes.experiments.runs.finished_runs import Run, read_run
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, number, per_cent, save_tables
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands

OTHERS = {"of mean weights": "accuracy_of_mean", "of one draw": "accuracy_of_sample"}  # title: key of results.json
DIGITS = {  # number of decimals of each value of `information` in results.json that is a column
    "prior": 1,
    "refitted_prior": 1,
    "other_tasks": 1,
    "second_set": 1,
    "below": 1,
    "sigma": 1,
    "bound": 1,
    "tightness": 4,
}
# Title of a panel: function that returns the metric of runs, and the half width of its 95% interval over tasks or None.
PANELS: dict[str, Callable[[Sequence[Run]], Any]] = {
    "KL(q, p_psi), nats per task": lambda runs: (mean_of(runs, "prior"), None),
    "KL to q of the second set, nats per task": lambda runs: (mean_of(runs, "second_set"), None),
    "gap, nats per query": lambda runs: gap_of(runs),
    "bound on the gap, nats per query": lambda runs: (mean_of(runs, "bound"), None),
    "accuracy, %": lambda runs: [100 * value for value in mean_and_ci95(runs, "accuracy")],
}


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    name = f"information of study={HydraConfig.get().runtime.choices['study']} size={config.size}"
    run_study(config, name, folder, write)


def by_steps(row: Row, folder: Path) -> list[list[Run]]:
    """Return the runs of a row grouped by the number of inner steps K, in increasing order of K.

    Each group holds one run or evaluation per seed.
    """
    runs_by_steps: dict[int, list[Run]] = {}
    for trained in row.folders(folder):
        for run in map(read_run, (trained, *sorted(trained.glob("evaluations/*")))):
            runs_by_steps.setdefault(steps_of(run) or 0, []).append(run)
    return [runs_by_steps[steps] for steps in sorted(runs_by_steps)]


def steps_of(run: Run) -> int | None:
    """Return the number of inner steps K of a run; None for a guide without inner steps."""
    steps: int | None = run.results["config"]["guide"].get("num_steps")
    return steps


def values_of(runs: Sequence[Run], *path: str) -> list[float] | None:
    """Return a value of `information` of each run; None if a run lacks the value.

    Args:
        runs: one run per seed.
        path: nested keys of `information`, such as "gap", "mean".
    """
    values: list[Any] = [run.results["information"] for run in runs]
    for name in path:
        values = [None if value is None else value[name] for value in values]
    return None if None in values else values


def mean_of(runs: Sequence[Run], *path: str) -> float | None:
    """Return the mean over seeds of a value of `information`; None if a run lacks the value."""
    values = values_of(runs, *path)
    return None if values is None else mean_of_runs(runs, values)


def gap_of(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return the generalisation gap and the half width of its 95% interval over tasks; None for a point estimate."""
    means, widths = values_of(runs, "gap", "mean"), values_of(runs, "gap", "ci95")
    return None if means is None or widths is None else (mean_of_runs(runs, means), ci95_of_runs(runs, widths))


def table_row(row: Row, runs: Sequence[Run]) -> dict[str, str]:
    gap, steps = gap_of(runs), steps_of(runs[0])
    return {
        "row": row.label,
        "K": "-" if steps is None else str(steps),
        "accuracy %": per_cent(*mean_and_ci95(runs, "accuracy")),
        **{title: per_cent(mean_of_runs(runs, [run.results[name] for run in runs])) for title, name in OTHERS.items()},
        "gap, nats per query": "-" if gap is None else f"{gap[0]:+.3f} +- {gap[1]:.3f}",
        **{name: number(mean_of(runs, name), digits) for name, digits in DIGITS.items()},
    }


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the table (with the command that reruns each row) and the plot."""
    entries = [(row, runs) for row in rows for runs in by_steps(row, folder)]
    table = [table_row(row, runs) for row, runs in entries]
    page = f"{markdown_table(table)}\n\n{commands(rows)}\n"
    save_tables(folder, page, table)
    print(text_table(table))
    print(f"table.md, table.csv and plot: {draw(rows, folder)}")


def draw(rows: Sequence[Row], folder: Path) -> Path:
    """Plot information, generalisation gap, bound on the gap, and accuracy against the number of inner steps K.

    The plot has one line per row that was evaluated at several K. The last panel has the legend.
    """
    figure, axes = new_figure(3, rows=2)
    for axis, title in zip(axes, PANELS, strict=False):
        axis.set(xlabel="inner steps K")
        axis.set_title(title, fontsize=10)
    for row in rows:
        steps = [runs for runs in by_steps(row, folder) if gap_of(runs) is not None]
        if len(steps) >= 2:
            _draw_learner(axes, row.label, steps)
    axes[0].set_yscale("log")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False, fontsize=10)
    return save_figure(figure, folder / "information.png")


def _draw_learner(axes: Sequence[Any], label: str, steps: Sequence[Sequence[Run]]) -> None:
    """Plot the metrics of one learner against K, one line per panel.

    Args:
        axes: the panels, one per metric.
        label: the name of the learner.
        steps: the runs for each number of inner steps K, one run per seed.
    """
    places = [steps_of(runs[0]) for runs in steps]
    for axis, metric in zip(axes, PANELS.values(), strict=False):
        means, widths = zip(*map(metric, steps), strict=True)
        axis.errorbar(places, means, yerr=None if None in widths else widths, fmt="o-", ms=3, label=label)


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "information")
