"""python -m experiments.compare runs/proto runs/sib: compare finished runs in one table and one plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.compare.plots import draw
from pyro_metabayes.experiments.runs.comparison import (
    differences_row,
    scores_row,
    training_runs_row,
    unpaired_note,
    with_meaning,
)
from pyro_metabayes.experiments.runs.finished_runs import Run, find_runs, group_by_label
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.storage.paths import user_path

PAIRED = (
    "Differences to the first row with the same data and task, on the same tasks (paired 95% intervals over tasks, "
    "given backbones and classes):"
)
OVER_RUNS = (
    "The same differences with 95% intervals over training runs (Student's t over backbones, or over seeds if all runs "
    "share one backbone; better or worse: the interval excludes 0):"
)


Groups = Mapping[tuple[str, str], Sequence[Run]]


Table = list[dict[str, str]]


def tables(groups: Groups) -> tuple[Table, Table, Table]:
    """The scores, their differences to the first row with the same data and task, and these over training runs."""
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
    """One line per row that cannot be paired with the first row, on the same data or on other data of this name."""
    first: dict[str, tuple[str, Sequence[Run]]] = {}
    lines = []
    for (task, label), runs in groups.items():
        if baseline := first.get(task) or first.get(runs[0].task):
            lines.append(unpaired_note(label, runs, *baseline))
        for name in (task, runs[0].task):
            first.setdefault(name, (label, runs))
    return [line for line in lines if line]


def _page(form: Callable[[Table], str], scores: Table, paired: Table, over: Table) -> str:
    """The three tables."""
    return f"{form(scores)}\n\n{PAIRED}\n\n{form(paired)}\n\n{OVER_RUNS}\n\n{form(over)}\n"


def _csv_rows(scores: Table, paired: Table, over: Table) -> Table:
    """One row per group of runs; differences over training runs have a prefix."""
    renamed = [{f"over runs: {name}": cell for name, cell in row.items() if name not in scores[0]} for row in over]
    return [row | difference | of_runs for row, difference, of_runs in zip(scores, paired, renamed, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    help_runs = (
        "folders of runs, or folders that contain runs, taken in the order of their paths; the first is the baseline"
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
    save_tables(out, _page(markdown_table, scores, paired, over) + below, _csv_rows(scores, paired, over))
    draw(groups, out / "comparison.png")
    print(_page(text_table, scores, paired, over) + below)
    print(f"table.md, table.csv and comparison.png: {out}")


if __name__ == "__main__":
    run_program(main)
