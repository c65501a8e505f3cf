"""python -m experiments.reproduce table=sib_cifar_fs: run the settings of a published table and compare with the paper.

A table is a list of runs of experiments.run (conf/table/NAME.yaml). Finished runs are kept, so the same command
continues an interrupted table. The command writes a section of RESULTS.md with this table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.evaluation.intervals import over_runs
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.sweeps import another_folder
from pyro_metabayes.experiments.cli.text_table import WIDTH, narrow, text_table
from pyro_metabayes.experiments.runs.comparison import mean_and_ci95, mean_metric
from pyro_metabayes.experiments.runs.finished_runs import Run, read_run
from pyro_metabayes.experiments.runs.tables import markdown_table, number, per_cent
from pyro_metabayes.experiments.studies.run_grid import run_grid
from pyro_metabayes.experiments.studies.study import Row, chosen_rows, claim, jobs_of, rows_of
from pyro_metabayes.experiments.studies.tables import commands, verdict
from pyro_metabayes.storage.checkpoint import write_atomically

KINDS = {False: "inductive", True: "transductive"}
INTERVALS = (
    "95% intervals: those of the accuracies are over tasks, given backbones and classes; those of 'ours, over runs' "
    "are over training runs (Student's t over backbones, or over seeds if all runs share one backbone)."
)
EMPTY = dict.fromkeys(("NLL", "ECE", "prior"), "-") | {"tasks": "not run", "seeds": "-", "seconds": "-"}


@dataclass
class TableConfig:
    """Settings of experiments.reproduce."""

    table: dict[str, Any]  # rows of a published table, listed in conf/table/NAME.yaml
    name: str = ""  # name of the table; filled in by conf/reproduce.yaml
    size: str = "full"  # full, or smoke: a few training steps of one seed, to test that all rows run
    parts: list[str] = field(default_factory=list)  # parts of the table to run; empty: all that this machine can run
    workers: int = 2  # number of runs in parallel, each on one thread
    out: str = "RESULTS.md"  # file for a table of size=full; sections of other tables are kept


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    rows = [row for row in chosen_rows(config.table, config.size, config.parts) if possible(row, config)]
    advice = another_folder()
    claim(folder, f"table={config.name} size={config.size}", advice)
    jobs, _ = jobs_of(rows, folder, {})
    try:
        run_grid(jobs, config.workers, "table", advice)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished runs are kept: the same command continues the table") from None
    section = section_of(config.name, config.table, config.size == "smoke", folder)
    out = Path(config.out) if config.size == "full" else folder / "RESULTS.md"
    write_atomically(out, lambda path: path.write_text(with_section(out, config.name, section)))
    print(text_table(table_of(config.table, rows, folder)))
    print(textwrap.fill(INTERVALS, WIDTH))
    print(f"written: {out}")


def possible(row: Row, config: TableConfig) -> bool:
    """Return whether this machine can run a row of the table. Any machine can run the rows of size=smoke.

    Raises:
        UsageError: no CUDA device is found for a row that needs one, in a part that the user chose with parts=.
    """
    needs = config.table["parts"][row.part].get("needs")
    if needs != "cuda" or config.size == "smoke" or torch.cuda.is_available():
        return True
    if row.part in config.parts:
        raise UsageError(
            f"expected a CUDA device for the part '{row.part}', found none; remove '{row.part}' from parts="
        )
    return False


def section_of(name: str, table: Mapping[str, Any], smoke: bool, folder: Path) -> str:
    """Return the Markdown section of a table: title, source, rows, machines, and the command of each row.

    Args:
        name: the name of the table.
        table: content of conf/table/NAME.yaml.
        smoke: whether the rows are of size=smoke.
        folder: the folder that holds the runs.
    """
    rows = rows_of(table, smoke)
    machines = {run.results["machine"] for row in rows for run in finished_runs(row, folder)}
    lines = [
        f"## {table['title']}",
        f"`python -m experiments.reproduce table={name}`. {table['source']}",
        *tables_by_setting(table_of(table, rows, folder)),
        *not_run(table, rows, folder),
        INTERVALS,
        f"Machine: {'; '.join(sorted(machines)) or 'none yet'}; one thread per run, seconds of training and test.",
        commands(rows),
    ]
    return "\n\n".join(lines)


def tables_by_setting(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a heading per setting, followed by tables of at most 7 columns: first the accuracies, then the scores."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        chosen = [{name: row[name] for name in row if name != "setting"} for row in rows if row["setting"] == setting]
        lines += [f"### {setting}", *map(markdown_table, narrow(chosen, width=200))]
    return lines


def not_run(table: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[str]:
    """Return a Markdown list of the parts that need a device and are not run, with their estimated cost; else []."""
    missing = dict.fromkeys(row.part for row in rows if not finished_runs(row, folder))
    parts = [part for part in map(table["parts"].__getitem__, missing) if "needs" in part]
    items = [f"- {part['setting']}: needs {part['needs']}, {part['estimate']}" for part in parts]
    return ["Not run:", "\n".join(items)] if items else []


def with_section(path: Path, name: str, section: str) -> str:
    """Return the text of the page with a section appended, or put in place of the earlier section of the same name.

    Args:
        path: the page, or the path of a new page.
        name: the name of the table.
        section: the new section.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text() if path.exists() else "# Published tables, and the results of this package\n"
    block = f"{begin}\n{section}\n{end}"
    if begin in text and end in text:
        return text.partition(begin)[0] + block + text.partition(end)[2]
    return f"{text}\n{block}\n"


def finished_runs(row: Row, folder: Path) -> list[Run]:
    """Return the finished runs of a row, one per seed, with the scores of each task."""
    return [read_run(run) for run in row.folders(folder) if (run / "results.json").exists()]


def table_of(table: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[dict[str, str]]:
    return [table_row(row, table["parts"][row.part], folder) for row in rows]


def table_row(row: Row, part: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return one row of the table: the published and the measured accuracy, and other metrics.

    Inductive and transductive accuracies have columns of their own. Cells of missing runs are dashes.
    """
    published = part.get("published", {}).get(row.label, {})
    runs = finished_runs(row, folder)
    results = [run.results for run in runs]
    own = _accuracy(runs) if runs else "-"
    kind = KINDS[bool(results and results[0]["transductive"])]
    line = {"method": row.label, "setting": part["setting"]}
    for name in KINDS.values():
        line |= {f"paper, {name} %": str(published.get(name, "-")), f"ours, {name} %": own if name == kind else "-"}
    line["ours, over runs"] = _over_runs(runs) if runs else "-"
    return line | (_score_cells(runs) if runs else EMPTY)


def _score_cells(runs: Sequence[Run]) -> dict[str, str]:
    """Return the cells of a row with finished runs: means over tasks, and seconds of the average run."""
    results = [run.results for run in runs]
    return {
        "NLL": number(mean_metric(runs, "nll")),
        "ECE": number(mean_metric(runs, "ece")),
        "prior": verdict(results),
        "tasks": str(results[0]["tasks"]),
        "seeds": ", ".join(str(run["seed"]) for run in results),
        "seconds": f"{np.mean([sum(run['seconds'].values()) for run in results]):.0f}",
    }


def _accuracy(runs: Sequence[Run]) -> str:
    """Return the accuracy over the tasks of all seeds. The 95% interval takes backbones and classes as given."""
    return per_cent(*mean_and_ci95(runs, "accuracy"))


def _over_runs(runs: Sequence[Run]) -> str:
    """Return the mean accuracy of a row with its 95% interval over training runs; a dash for a single run."""
    interval = over_runs([float(run.per_task["accuracy"].mean()) for run in runs], [run.backbone for run in runs])
    if interval.ci95 is None:
        return "-"
    return f"{per_cent(interval.mean, interval.ci95)}, {interval.unit}s"


if __name__ == "__main__":
    ConfigStore.instance().store(name="table_schema", node=TableConfig)
    run_command(main, "reproduce")
