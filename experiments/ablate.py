"""python -m experiments.ablate guide=sib: ablations of a guide, one change at a time.

Each row of conf/ablate/guide/NAME.yaml lists settings of experiments.run, with one run per seed. The label of a row
states the difference from the first row. Some learners are also evaluated under other settings, such as imbalanced or
larger query sets. Finished runs are kept, so the same command continues an interrupted ablation. The command writes
table.md, table.csv, ablation.png and, for the other query sets, query_sets.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.diagnostics.collapse_metrics import without_information
from pyro_metabayes.experiments.cli.command import CONF, run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.comparison import differences_row, mean_and_ci95, scores_row
from pyro_metabayes.experiments.runs.finished_runs import Run, read_run
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, queries_of, save_tables
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands

COLUMNS = ("NLL", "ECE", "KL", "prior")  # columns taken from the table of experiments.compare
NOTE = (
    "The label of a row states its difference from the first row. Gains over the first row are paired: both learners "
    "are evaluated on the same tasks, the first with the guide settings of its training. A dash means that the first "
    "learner was not evaluated on these tasks."
)


@dataclass
class AblationConfig(StudyConfig):
    """Settings of experiments.ablate: those of `StudyConfig`, and the data."""

    on: str = "data=gaussian_features"  # data and further settings of every row


@dataclass(frozen=True)
class ScoredRow:
    """Row of the study with its results.

    Args:
        row: the row of the study.
        changes: the settings that the evaluation changes; '' for the evaluation at the end of training.
        runs: the results, one per seed.
    """

    row: Row
    changes: str
    runs: Sequence[Run]

    @property
    def queries(self) -> str:
        return queries_of(self.runs[0].results)

    @property
    def same_guide(self) -> bool:
        """Whether the guide has the same settings in the evaluation as in training."""
        return "guide." not in self.changes


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    guide = HydraConfig.get().runtime.choices["guide"]
    run_study(config, f"guide={guide} {config.on} size={config.size}", folder, write)


def scored_rows(study: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[ScoredRow]:
    """Read the results of each row: first the evaluation after training, then the evaluations with changed settings."""
    entries = []
    for row in rows:
        folders = row.folders(folder)
        entries.append(ScoredRow(row, "", [read_run(run) for run in folders]))
        if row.part in study["evaluations"].get("parts", ()):
            for changes in map(str, study["evaluations"]["settings"]):
                name = ",".join(changes.split())
                runs = [read_run(run / "evaluations" / name) for run in folders]
                entries.append(ScoredRow(row, changes, runs))
    return entries


def table_row(entry: ScoredRow, base: Sequence[Run]) -> dict[str, str]:
    """Return one row of the table.

    Args:
        entry: the row of the study with its results.
        base: evaluations of the first row of the study. The gain is over the evaluation on the same tasks.
    """
    cells = scores_row("", "", entry.runs)
    gain = differences_row("", "", entry.runs, base)["accuracy gain, points"]
    return {
        "part": entry.row.part,
        "row": entry.row.label,
        "queries": entry.queries,
        "K": str(entry.runs[0].results["config"]["guide"].get("num_steps", "-")),
        "noise": f"{entry.runs[0].results['feature_noise']:g}",
        "accuracy %": cells["accuracy %"] if cells["accuracy %"] != "-" else cells["transductive %"],
        "gain, points": gain,
        **{name: cells[name] for name in COLUMNS},
    }


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write table.md (with the command that reruns each row), table.csv and the plots."""
    entries = scored_rows(study, rows, folder)
    first_entries = [entry for entry in entries if entry.row == entries[0].row]
    base = [run for entry in reversed(first_entries) if entry.same_guide for run in entry.runs]
    table = [table_row(entry, base) for entry in entries]
    page = f"{NOTE}\n\n{markdown_table(table)}\n\n{commands(rows)}\n"
    save_tables(folder, page, without_information(table))
    print(text_table(table))
    plots = [draw_changes(entries, folder / "ablation.png")]
    if reevaluated := [entry for entry in entries if entry.changes and entry.same_guide]:
        plots.append(draw_query_sets(reevaluated, folder / "query_sets.png"))
    print(f"table.md, table.csv and {' and '.join(map(str, plots))}")


def draw_changes(entries: Sequence[ScoredRow], path: Path) -> Path:
    """Plot the accuracy of each row under its training settings, one colour per part, and save the plot."""
    rows = [entry for entry in entries if not entry.changes]
    parts = list(dict.fromkeys(entry.row.part for entry in rows))
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(9.0, 0.24 * len(rows) + 1.0)
    for place, entry in enumerate(rows):
        mean, ci95 = accuracy_of(entry)
        axis.errorbar(mean, -place, xerr=ci95, fmt="o", ms=4, color=f"C{parts.index(entry.row.part)}")
    axis.axvline(accuracy_of(rows[0])[0], color="black", lw=0.8, ls=":")
    names = [f"{entry.row.label} ({entry.row.part})" for entry in rows]
    axis.set_yticks([-place for place in range(len(rows))], names, fontsize=8)
    axis.set_ylim(0.3 - len(rows), 0.7)
    axis.set_xlabel(f"accuracy, %, as trained; dotted: {rows[0].row.label}")
    return save_figure(figure, path)


def draw_query_sets(entries: Sequence[ScoredRow], path: Path) -> Path:
    """Plot the accuracy of each learner on each query set, with one colour per learner, and save the plot."""
    sets = list(dict.fromkeys(map(_query_set, entries)))
    learners = list(dict.fromkeys(entry.row for entry in entries))
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(9.0, 0.4 * len(sets) + 1.4)
    for number, row in enumerate(learners):
        shift = 0.15 * ((len(learners) - 1) / 2 - number)  # learners side by side, so that none covers another
        points = [(shift - sets.index(_query_set(entry)), *accuracy_of(entry)) for entry in entries if entry.row == row]
        place, mean, ci95 = zip(*points, strict=True)
        axis.errorbar(mean, place, xerr=ci95, fmt="o", ms=4, color=f"C{number}", label=row.label)
    axis.set_yticks([-place for place in range(len(sets))], sets, fontsize=8)
    axis.set_xlabel("accuracy, %, of the same learner on other query sets")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, path)


def _query_set(entry: ScoredRow) -> str:
    noise = entry.runs[0].results["feature_noise"]
    return f"{entry.queries} queries" + (f", noise {noise:g}" if noise else "")


def accuracy_of(entry: ScoredRow) -> tuple[float, float]:
    """Return the accuracy and the half width of its 95% interval over tasks, as in the table, in per cent."""
    mean, ci95 = mean_and_ci95(entry.runs, "accuracy")
    return 100 * mean, 100 * ci95


if __name__ == "__main__":
    ConfigStore.instance().store(name="ablation_schema", node=AblationConfig)
    run_command(main, "config", f"{CONF}/ablate")
