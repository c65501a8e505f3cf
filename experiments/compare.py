"""python -m experiments.compare runs/...: gather finished runs into one table and one picture."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pyro_metabayes.checkpoint import write_atomically
from pyro_metabayes.errors import UsageError
from pyro_metabayes.report import (
    COLLAPSE,
    csv_table,
    markdown_table,
    new_figure,
    number,
    per_cent,
    save_figure,
    text_table,
)
from pyro_metabayes.scores import ci95_of

DIFFERENCES = {  # title, factor, digits
    "accuracy": ("accuracy gain, points", 100, 1),
    "nll": ("NLL difference", 1, 4),
    "joint_nll": ("joint NLL difference", 1, 4),
}
SCORES = {"accuracy": 100.0, "nll": 1.0, "joint_nll": 1.0}
NEEDED = {"guide", "data", "split", "way", "shot", "query", "tasks", "seed", "config"}
NEEDED |= {"ece", "elbo", "kl", "collapsed", "transductive"}
PAIRED = "Less the first row of the same data and task, on the same tasks (95% intervals of the paired differences):"
WITHOUT_MEANING = ("seed", "device", "resume", "choices")  # settings that make no other experiment


@dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: Path
    results: Mapping[str, Any]
    per_task: Mapping[str, np.ndarray]

    @property
    def task(self) -> str:
        its = self.results
        return f"{its['data']} {its['way']}-way {its['shot']}-shot, {its['split']}"

    @property
    def tasks(self) -> tuple[Any, ...]:
        """What fixes the test tasks; runs that agree on it can be compared task by task."""
        return tuple(self.results[name] for name in ("data", "split", "way", "shot", "query", "tasks", "seed"))


def find_runs(paths: Sequence[str]) -> list[Run]:
    """Every run in or below the folders, a run before its later evaluations."""
    runs = []
    for path in paths:
        found = sorted(Path(path).rglob("results.json"), key=lambda file: (len(file.parts), file))
        if not found:
            raise UsageError(f"expected a folder with finished runs (results.json), got '{path}', which has none")
        runs += [read_run(file.parent) for file in found]
    return runs


def read_run(folder: Path) -> Run:
    try:
        results = json.loads((folder / "results.json").read_text())
        # Opened here: numpy leaves a damaged file open.
        with (folder / "tasks.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            per_task = {name: archive[name] for name in SCORES}
        if missing := sorted(NEEDED - (results.keys() if isinstance(results, dict) else set())):
            raise ValueError(f"results.json lacks {', '.join(missing)}")
        return Run(folder, results, per_task)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise UsageError(f"expected a finished run in {folder}, got files that do not read: {error}") from None


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def labels(runs: Sequence[Run]) -> list[str]:
    """The guide of each run, and the settings in which runs of that guide on that task differ."""
    by_guide = defaultdict(list)
    configs = [{k: v for k, v in run.results["config"].items() if k not in WITHOUT_MEANING} for run in runs]
    settings = [dict(flat(config)) for config in configs]
    for run, its in zip(runs, settings, strict=True):
        by_guide[run.results["guide"], run.task].append(its)
    names = []
    for run, its in zip(runs, settings, strict=True):
        family = by_guide[run.results["guide"], run.task]
        every = {name for other in family for name in other}
        differ = sorted(name for name in every if len({repr(other.get(name)) for other in family}) > 1)
        names.append(" ".join([run.results["guide"], *(f"{name}={its.get(name)}" for name in differ)]))
    return names


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs that differ in nothing but the seed, by (data and task, label); the same tasks count once."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, label in zip(runs, labels(runs), strict=True):
        group = groups[run.task, label]
        if all(run.tasks != other.tasks for other in group):
            group.append(run)
    return dict(groups)


def mean_over_seeds(runs: Sequence[Run], name: str) -> float | None:
    values = [run.results[name] for run in runs]
    return None if None in values else float(np.mean(values))


def row(task: str, label: str, runs: Sequence[Run]) -> dict[str, str]:
    """Means over seeds, with 95% intervals over all their tasks."""
    scores = {name: np.concatenate([run.per_task[name] for run in runs]) for name in SCORES}
    collapsed = {run.results["collapsed"] for run in runs}
    return {
        "data and task": task,
        "guide": label,
        "seeds": str(len(runs)),
        "accuracy %": per_cent(scores["accuracy"].mean(), ci95_of(scores["accuracy"])),
        "NLL": f"{scores['nll'].mean():.3f} +- {ci95_of(scores['nll']):.3f}",
        "joint NLL": f"{scores['joint_nll'].mean():.3f} +- {ci95_of(scores['joint_nll']):.3f}",
        "ECE": number(mean_over_seeds(runs, "ece")),
        "ELBO": number(mean_over_seeds(runs, "elbo"), 1),
        "KL": number(mean_over_seeds(runs, "kl"), 1),
        "prior": COLLAPSE[collapsed.pop()] if len(collapsed) == 1 else "differs",
        "transductive": "yes" if runs[0].results["transductive"] else "no",
    }


def differences(task: str, label: str, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, str]:
    """Each score less that of `first`, paired: on the same tasks, which leaves out how hard they were."""
    row = {"data and task": task, "guide": label}
    for name, (title, factor, digits) in DIFFERENCES.items():
        of_first = {run.tasks: run.per_task[name] for run in first}
        pairs = [(run.per_task[name], of_first[run.tasks]) for run in runs if run.tasks in of_first]
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


def draw(groups: Mapping[tuple[str, str], Sequence[Run]], path: Path) -> None:
    """Accuracy and NLL of every row with its interval; transductive rows hollow."""
    figure, axes = new_figure(2)
    figure.set_size_inches(11, 1.6 + 0.32 * len(groups))
    names = [f"{label}\n{task}" if len({t for t, _ in groups}) > 1 else label for task, label in groups]
    for axis, (score, title) in zip(axes, (("accuracy", "accuracy, %"), ("nll", "NLL, nats a query")), strict=True):
        for height, runs in enumerate(groups.values()):
            values = SCORES[score] * np.concatenate([run.per_task[score] for run in runs])
            fill = "white" if runs[0].results["transductive"] else "C0"
            axis.errorbar(values.mean(), -height, xerr=ci95_of(values), fmt="o", color="C0", mfc=fill, capsize=3)
        axis.set(yticks=range(0, -len(groups), -1), yticklabels=names if score == "accuracy" else [])
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
    figure.suptitle("means over tasks with 95% intervals; hollow: transductive", fontsize=9)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs, or folders above them; the first is the baseline")
    parser.add_argument("--out", default="runs/comparison", help="folder for table.md, table.csv and comparison.png")
    options = parser.parse_args(arguments)
    groups = grouped(find_runs(options.runs))
    scores, paired = tables(groups)
    out = Path(options.out)
    both = f"{markdown_table(scores)}\n\n{PAIRED}\n\n{markdown_table(paired)}\n"
    write_atomically(out / "table.md", lambda temporary: temporary.write_text(both))
    merged = csv_table([its | difference for its, difference in zip(scores, paired, strict=True)])
    write_atomically(out / "table.csv", lambda temporary: temporary.write_text(merged))
    draw(groups, out / "comparison.png")
    print(f"{text_table(scores)}\n\n{PAIRED}\n\n{text_table(paired)}\n")
    print(f"table.md, table.csv and comparison.png: {out}")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
