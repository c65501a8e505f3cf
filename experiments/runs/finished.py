"""Finished runs, read from their folders, named by what differs between them, and put together over seeds."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.runs.tables import task_name
from pyro_metabayes.storage.untrusted import DAMAGED, check_plain, read_npz, reason_of

SCORES = ("accuracy", "nll", "joint_nll")
QUERIES = ("query", "base_query", "query_counts", "query_concentration", "query_balanced")
TASKS = ("data", "split", "way", "shot", *QUERIES, "feature_noise", "tasks", "seed")  # what fixes the tasks of a run
NEEDED_SCORES = ("nll", "joint_nll")  # a regression has no accuracy
NEEDED = {"guide", "data", "split", "way", "shot", "query", "tasks", "seed", "config"}
NEEDED |= {"ece", "elbo", "kl", "logit_sd", "collapsed", "transductive", "steps"}
WITHOUT_MEANING = ("seed", "device", "trainer", "threads", "resume", "choices")  # make no other experiment


@dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: Path
    results: Mapping[str, Any]
    per_task: Mapping[str, np.ndarray]

    @property
    def task(self) -> str:
        its = self.results
        return f"{its['data']} {task_name(its['way'], its['shot'], its.get('base_classes'))}, {its['split']}"

    @property
    def tasks(self) -> tuple[Any, ...]:
        """What fixes the test tasks; runs that agree on it can be compared task by task."""
        return tuple(str(self.results.get(name) or None) for name in TASKS)  # none of what an older run does not name


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
    reading = "results.json"
    if not (folder / reading).is_file():
        begun = (folder / "checkpoint.pt").is_file()
        remedy = f"finish it with: python -m experiments.run resume={folder}" if begun else "give the folder of a run"
        raise UsageError(f"expected a finished run in {folder}, got no {reading}; {remedy}")
    try:
        results = json.loads((folder / reading).read_text())
        reading = "tasks.npz"
        archive = read_npz(folder / reading)
        per_task = {name: archive[name] for name in SCORES if name in archive or name in NEEDED_SCORES}
        if missing := sorted(NEEDED - (results.keys() if isinstance(results, dict) else set())):
            raise ValueError(f"results.json lacks {', '.join(missing)}")
        if wrong := [name for name, its in per_task.items() if its.ndim != 1 or its.dtype.kind != "f"]:
            raise ValueError(f"tasks.npz has no number for each task in {', '.join(wrong)}")
        check_plain(results)
        if not isinstance(results["config"], dict):
            raise ValueError("results.json has no settings")
        return Run(folder, results, per_task)
    except DAMAGED as error:
        raise UsageError(
            f"expected a finished run in {folder}, got files that do not read: {reading}: {reason_of(error)}"
        ) from None


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
        else:
            print(f"note: left out {run.folder}: same settings and tasks as a run before it", file=sys.stderr)
    return dict(groups)
