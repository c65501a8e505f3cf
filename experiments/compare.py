"""python -m experiments.compare runs/...: gather finished runs into one table and one picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.command import answer
from experiments.picture import draw
from experiments.runs import Run, find_runs, grouped
from pyro_metabayes.report import COLLAPSE, markdown_table, number, per_cent, save_tables, text_table
from pyro_metabayes.scores import ci95_of

DIFFERENCES = {  # title, factor, digits
    "accuracy": ("accuracy gain, points", 100, 1),
    "nll": ("NLL difference", 1, 4),
    "joint_nll": ("joint NLL difference", 1, 4),
}
PAIRED = "Less the first row of the same data and task, on the same tasks (95% intervals of the paired differences):"


def mean_over_seeds(runs: Sequence[Run], name: str) -> float | None:
    values = [run.results[name] for run in runs]
    return None if None in values else float(np.mean(values))


def row(task: str, label: str, runs: Sequence[Run]) -> dict[str, str]:
    """Means over seeds, with 95% intervals over all their tasks."""
    scores = {name: np.concatenate([run.per_task[name] for run in runs]) for name in runs[0].per_task}
    collapsed = {run.results["collapsed"] for run in runs}
    accuracy = "-"
    if "accuracy" in scores:
        accuracy = per_cent(scores["accuracy"].mean(), ci95_of(scores["accuracy"]))
    transductive = runs[0].results["transductive"]
    return {
        "data and task": task,
        "guide": label,
        "seeds": str(len(runs)),
        "steps": "-".join(sorted({str(run.results["steps"]) for run in runs})),
        # Two columns: who sees the whole query set before it answers competes with its like alone.
        "accuracy %": "-" if transductive else accuracy,
        "transductive %": accuracy if transductive else "-",
        "NLL": f"{scores['nll'].mean():.3f} +- {ci95_of(scores['nll']):.3f}",
        "joint NLL": f"{scores['joint_nll'].mean():.3f} +- {ci95_of(scores['joint_nll']):.3f}",
        "ECE": number(mean_over_seeds(runs, "ece")),
        "ELBO": number(mean_over_seeds(runs, "elbo"), 1),
        "KL": number(mean_over_seeds(runs, "kl"), 1),
        "prior": COLLAPSE[collapsed.pop()] if len(collapsed) == 1 else "differs",
    }


def differences(task: str, label: str, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, str]:
    """Each score less that of `first`, paired: on the same tasks, which leaves out how hard they were."""
    row = {"data and task": task, "guide": label}
    for name, (title, factor, digits) in DIFFERENCES.items():
        of_first = {run.tasks: run.per_task.get(name) for run in first}
        pairs = [
            (run.per_task[name], of_first[run.tasks]) for run in runs if name in run.per_task and run.tasks in of_first
        ]
        row[title] = "-"
        if pairs and runs is not first:
            gain = factor * np.concatenate([its - other for its, other in pairs])
            row[title] = f"{gain.mean():+.{digits}f} +- {ci95_of(gain):.{digits}f}"
    return row


def tables(groups: Mapping[tuple[str, str], Sequence[Run]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The scores, and their differences to the first row of the same data and task."""
    first: dict[str, Sequence[Run]] = {}
    scores, paired = [], []
    for (task, label), runs in groups.items():
        scores.append(row(task, label, runs))
        paired.append(differences(task, label, runs, first.setdefault(task, runs)))
    return scores, paired


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    help_runs = "folders of runs, or folders above them (in the order of their paths); the first row is the baseline"
    parser.add_argument("runs", nargs="+", help=help_runs)
    parser.add_argument("--out", default="runs/comparison", help="folder for table.md, table.csv and comparison.png")
    options = parser.parse_args(arguments)
    groups = grouped(find_runs(options.runs))
    scores, paired = tables(groups)
    out = Path(options.out)
    both = f"{markdown_table(scores)}\n\n{PAIRED}\n\n{markdown_table(paired)}\n"
    save_tables(out, both, [its | difference for its, difference in zip(scores, paired, strict=True)])
    draw(groups, out / "comparison.png")
    print(f"{text_table(scores)}\n\n{PAIRED}\n\n{text_table(paired)}\n")
    print(f"table.md, table.csv and comparison.png: {out}")


if __name__ == "__main__":
    answer(main)
