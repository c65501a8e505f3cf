"""python -m experiments.ablate guide=sib: what of a method matters, one change at a time.

Each row of conf/ablate/guide/NAME.yaml is a run of experiments.run that differs from the first one in what it says, and
some are scored again under other settings (unbalanced queries, more of them). Finished runs are kept, so an interrupted
ablation goes on when it is called again. Leaves table.md, table.csv and ablation.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.experiments.cli.command import CONF, run_command
from pyro_metabayes.experiments.runs.comparison import differences_row, scores_row
from pyro_metabayes.experiments.runs.finished import Run, read_run
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.runs.tables import markdown_table, queries_of, save_tables, text_table
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands

COLUMNS = ("NLL", "ECE", "KL", "prior")  # of experiments.compare
NOTE = (
    "Each row differs from the first one in what it says. Gains over the first row are paired: on the same tasks, "
    "scored as the row is; a dash where the tasks are not the same."
)


@dataclass
class AblationConfig(StudyConfig):
    """Which guide, on what data, and how the ablation is run."""

    on: str = "data=gaussian_features"  # the data of every row, with what else belongs to it


@dataclass(frozen=True)
class Scored:
    """A row, its runs (a seed each), and the settings that they were scored under, where not their own."""

    row: Row
    changes: str
    runs: Sequence[Run]

    @property
    def queries(self) -> str:
        return queries_of(self.runs[0].results)

    @property
    def same_guide(self) -> bool:
        """Whether it was scored with the inner steps that it was trained with."""
        return "guide." not in self.changes


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    guide = HydraConfig.get().runtime.choices["guide"]
    run_study(config, f"guide={guide} {config.on} size={config.size}", folder, write)


def scored(study: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[Scored]:
    """Every row as it was trained, then under each of the study's evaluations."""
    found = []
    for row in rows:
        folders = [row.folder(folder, seed) for seed in range(row.seeds)]
        found.append(Scored(row, "", [read_run(its) for its in folders]))
        if row.part in study["evaluations"].get("parts", ()):
            for changes in map(str, study["evaluations"]["settings"]):
                name = ",".join(changes.split())
                runs = [read_run(its / "evaluations" / name) for its in folders]
                found.append(Scored(row, changes, runs))
    return found


def line_of(its: Scored, base: Sequence[Run]) -> dict[str, str]:
    """One row of the table; `base`: all runs of the first row that a gain can be paired with."""
    cells = scores_row("", "", its.runs)
    gain = differences_row("", "", its.runs, base)["accuracy gain, points"]
    return {
        "part": its.row.part,
        "row": its.row.label,
        "queries": its.queries,
        "K": str(its.runs[0].results["config"]["guide"].get("num_steps", "-")),
        "noise": f"{its.runs[0].results['feature_noise']:g}",
        "accuracy %": cells["accuracy %"] if cells["accuracy %"] != "-" else cells["transductive %"],
        "gain, points": gain,
        **{name: cells[name] for name in COLUMNS},
    }


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """table.md with the command of every row, table.csv and the picture."""
    everything = scored(study, rows, folder)
    first = [its for its in everything if its.row == everything[0].row]
    base = [run for its in reversed(first) if its.same_guide for run in its.runs]
    table = [line_of(its, base) for its in everything]
    page = f"{NOTE}\n\n{markdown_table(table)}\n\n{commands(rows)}\n"
    save_tables(folder, page, table)
    print(text_table(table))
    print(f"table.md, table.csv and picture: {draw(everything, folder / 'ablation.png')}")


def draw(everything: Sequence[Scored], path: Path) -> Path:
    """Left: every row as it was trained. Right: the learners that were scored on other query sets as well."""
    trained = [its for its in everything if not its.changes]
    again = [its for its in everything if its.changes and its.same_guide]
    figure, axes = new_figure(2 if again else 1)
    figure.set_size_inches(6.2 * len(axes), 0.2 * len(trained) + 2.0)
    for place, its in enumerate(trained):
        mean, ci95 = accuracy_of(its)
        axes[0].errorbar(mean, -place, xerr=ci95, fmt="o", ms=4, color=f"C{_part(trained, its) % 10}")
    axes[0].axvline(accuracy_of(trained[0])[0], color="black", lw=0.8, ls=":")
    names = [f"{its.row.label} ({its.row.part})" for its in trained]
    axes[0].set_yticks([-place for place in range(len(trained))], names, fontsize=7)
    axes[0].set(xlabel="accuracy, %", title="trained and scored so")
    if again:
        _draw_again(axes[1], again)
        figure.legend(
            *axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=7
        )
    return save_figure(figure, path)


def _draw_again(axis: Any, again: Sequence[Scored]) -> None:
    """Accuracies of each learner over the query sets that all of them were scored on."""
    sets = list(dict.fromkeys(_set_of(its) for its in again))
    for number, row in enumerate(dict.fromkeys(its.row for its in again)):
        points = sorted((sets.index(_set_of(its)), *accuracy_of(its)) for its in again if its.row == row)
        place, mean, ci95 = zip(*points, strict=True)
        axis.errorbar(mean, [-value for value in place], xerr=ci95, fmt="o", ms=4, color=f"C{number}", label=row.label)
    axis.set_yticks([-place for place in range(len(sets))], sets, fontsize=7)
    axis.set(xlabel="accuracy, %", title="the same learner on other query sets")


def _set_of(its: Scored) -> str:
    noise = its.runs[0].results["feature_noise"]
    return f"{its.queries} queries" + (f", noise {noise:g}" if noise else "")


def accuracy_of(its: Scored) -> tuple[float, float]:
    """Mean over seeds and the mean of their intervals, in per cent."""
    each = [run.results["accuracy"] for run in its.runs]
    mean, ci95 = (100 * sum(one[name] for one in each) / len(each) for name in ("mean", "ci95"))
    return mean, ci95


def _part(rows: Sequence[Scored], its: Scored) -> int:
    return list(dict.fromkeys(other.row.part for other in rows)).index(its.row.part)


if __name__ == "__main__":
    ConfigStore.instance().store(name="ablation_schema", node=AblationConfig)
    run_command(main, "config", f"{CONF}/ablate")
