"""python -m experiments.compare runs/proto runs/sib: compare finished runs in one table and one plot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from pyro_metabayes.diagnostics.collapse_metrics import without_information
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.text_table import WIDTH, text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.compare.plots import draw
from pyro_metabayes.experiments.compare.training_runs import training_runs_row
from pyro_metabayes.experiments.runs.comparison import (
    differences_row,
    scores_row,
    unpaired_note,
    with_meaning,
)
from pyro_metabayes.experiments.runs.finished_runs import Run, find_runs, group_by_label
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.storage.paths import user_path

TASK = "data and task"  # title of a column
SCORES = "Means over tasks, with 95% intervals over tasks:"
PAIRED = (
    "Differences to the first row with the same data and task, on the same tasks (paired 95% intervals over tasks, "
    "given backbones and classes):"
)
OVER_RUNS = (
    "The same differences averaged over training runs, with 95% intervals over backbones, or over seeds if all runs "
    "share one backbone (Student's t). The words better and worse mean that the interval excludes 0:"
)


Groups = Mapping[tuple[str, str], Sequence[Run]]


Table = list[dict[str, str]]


def tables(groups: Groups) -> tuple[Table, Table, Table]:
    """Return three tables with one row per group of runs that differ only in the seed and the backbone.

    Returns:
        The scores, the differences with intervals over tasks, and the differences with intervals over training runs. A
        difference is the score of a row minus the score of the first row with the same data and task.
    """
    first: dict[str, Sequence[Run]] = {}
    scores, paired, over = [], [], []
    for (task, label), runs in groups.items():
        scores.append(scores_row(task, label, runs))
        baseline = first.setdefault(task, runs)
        paired.append(differences_row(task, label, runs, baseline))
        over.append(training_runs_row(task, label, runs, baseline))
    every = [run for runs in groups.values() for run in runs]
    return with_meaning(scores, every), with_meaning(paired, every), with_meaning(over, every)


def notes(groups: Groups) -> list[str]:
    """Return a sentence for each row that cannot be paired with the first row of the same data and task."""
    first: dict[str, tuple[str, Sequence[Run]]] = {}
    lines = []
    for (task, label), runs in groups.items():
        if baseline := first.get(task) or first.get(runs[0].task):
            lines.append(unpaired_note(label, runs, *baseline))
        for name in (task, runs[0].task):
            first.setdefault(name, (label, runs))
    return [line for line in lines if line]


def _page(form: Callable[[Table], str], filled: Callable[[str], str], *three: Table) -> str:
    """Return the three tables as one text: the two tables of differences, if there are any, then the scores.

    If all rows have the same data and task, the first line names data and task, and their column is left out.

    Args:
        form: function that formats a table.
        filled: function that wraps a sentence.
        three: scores, paired differences, and differences over training runs.
    """
    scores, paired, over = map(_without_only_task, three)
    tasks = {row[TASK] for row in three[0]}
    parts = [f"Data and task: {tasks.pop()}"] if len(tasks) == 1 else []
    for title, table in ((PAIRED, paired), (OVER_RUNS, over)):
        if any("+-" in cell for row in table for cell in row.values()):
            parts += [filled(title), form(table)]
    parts += [filled(SCORES)] if len(scores) > 1 else []
    return "\n\n".join([*parts, form(scores)]) + "\n"


def _without_only_task(table: Table) -> Table:
    """Return the table without the column "data and task" if all rows have the same entry."""
    several = len({row[TASK] for row in table}) > 1
    return [{name: cell for name, cell in row.items() if several or name != TASK} for row in table]


def _csv_rows(scores: Table, paired: Table, over: Table) -> Table:
    """Merge the three tables into one, for table.csv. The columns of `over` get the prefix "over runs"."""
    renamed = [{f"over runs: {name}": cell for name, cell in row.items() if name not in scores[0]} for row in over]
    merged = [row | difference | of_runs for row, difference, of_runs in zip(scores, paired, renamed, strict=True)]
    return without_information(merged)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    help_runs = (
        "folders of runs, or folders that contain runs (read in the order of their paths); the first is the baseline"
    )
    parser.add_argument("runs", nargs="+", help=help_runs)
    parser.add_argument(
        "--out", type=user_path, default="runs/comparison", help="folder for table.md, table.csv and comparison.png"
    )
    options = parser.parse_args(arguments)
    groups = group_by_label(find_runs(options.runs))
    scores, paired, over = tables(groups)
    out = options.out
    below = "".join(f"\n{line}\n" for line in notes(groups))
    three = scores, paired, over
    save_tables(out, _page(markdown_table, str, *three) + below, _csv_rows(*three))
    draw(groups, out / "comparison.png")
    print(_page(text_table, lambda text: textwrap.fill(text, WIDTH), *three) + below)
    print(f"table.md, table.csv and comparison.png: {out}")


if __name__ == "__main__":
    run_program(main)
