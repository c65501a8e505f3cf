"""python -m experiments.compare runs/proto runs/sib: compare finished runs in one table and one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.compare.plots import draw
from pyro_metabayes.experiments.runs.comparison import differences_row, scores_row, unpaired_note, with_meaning
from pyro_metabayes.experiments.runs.finished_runs import Run, find_runs, group_by_label
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables, text_table
from pyro_metabayes.storage.paths import user_path

PAIRED = "Differences to the first row with the same data and task, on the same tasks (95% intervals, paired):"


Groups = Mapping[tuple[str, str], Sequence[Run]]


def tables(groups: Groups) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The scores, and their differences to the first row with the same data and task."""
    first: dict[str, Sequence[Run]] = {}
    scores, paired = [], []
    for (task, label), runs in groups.items():
        scores.append(scores_row(task, label, runs))
        paired.append(differences_row(task, label, runs, first.setdefault(task, runs)))
    every = [run for runs in groups.values() for run in runs]
    return with_meaning(scores, every), with_meaning(paired, every)


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    help_runs = "folders of runs, or folders above them (in the order of their paths); the first row is the baseline"
    parser.add_argument("runs", nargs="+", help=help_runs)
    parser.add_argument(
        "--out", type=user_path, default="runs/comparison", help="folder for table.md, table.csv and comparison.png"
    )
    options = parser.parse_args(arguments)
    groups = group_by_label(find_runs(options.runs))
    scores, paired = tables(groups)
    out = options.out
    below = "".join(f"\n{line}\n" for line in notes(groups))
    both = f"{markdown_table(scores)}\n\n{PAIRED}\n\n{markdown_table(paired)}\n{below}"
    save_tables(out, both, [row | difference for row, difference in zip(scores, paired, strict=True)])
    draw(groups, out / "comparison.png")
    print(f"{text_table(scores)}\n\n{PAIRED}\n\n{text_table(paired)}\n{below}")
    print(f"table.md, table.csv and comparison.png: {out}")


if __name__ == "__main__":
    run_program(main)
