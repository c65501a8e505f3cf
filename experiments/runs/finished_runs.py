"""Reads finished runs from folders, labels them by the settings that differ, and groups them over seeds."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.batch_scores import GROUP
from pyro_metabayes.experiments.cli.overrides import flatten
from pyro_metabayes.experiments.runs.restore_run import refuse_without_results
from pyro_metabayes.experiments.runs.tables import JOINT_BOUND, split_name, task_name, without_old_joint
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import DAMAGED, check_plain, read_npz, reason_of

SCORES = ("accuracy", "nll", "joint_nll", "mse")
QUERIES = ("query", "base_query", "query_counts", "query_concentration", "query_balanced")
IGNORED = ("query_concentration", "query_balanced")  # if query_counts is set
# Fields that determine the tasks of a run, together with the data and the data settings.
TASKS = ("data", "split", "way", "shot", *QUERIES, "unknown", "feature_noise", "tasks", "seed")
OTHER_DATA_SETTINGS = ("_target_", "path", "device", "train_shift")  # without effect on test tasks of the same data
BACKBONE = "backbone_fingerprint"  # hash of the weights of the backbone; absent in earlier versions
FINGERPRINT = "data_fingerprint"  # hash of the data of a run; null for a simulator, absent in the first versions
NEEDED_SCORES = ("nll",)  # scores that every run has: a regression has no accuracy, and eval.joint=false no joint_nll
NEEDED = {"guide", "data", "split", "way", "shot", "query", "tasks", "seed", "config"}
NEEDED |= {"ece", "elbo", "kl", "logit_sd", "collapsed", "transductive", "steps"}
# Settings that do not define another experiment.
WITHOUT_MEANING = ("seed", "device", "trainer", "logger", "threads", "resume", "choices", "estimated")


@dataclass(frozen=True)
class Run:
    """Finished run: folder, results.json, and the scores of each task by name, each of shape [tasks]."""

    folder: Path
    results: Mapping[str, Any]
    per_task: Mapping[str, np.ndarray]
    groups: np.ndarray | None = None  # number of the group from which each task is drawn, if there are groups

    @property
    def backbone(self) -> str:
        """Hash of the backbone, or else text that identifies it. Runs with the same backbone are not independent."""
        if known := self.results.get(BACKBONE):
            return str(known)
        config = self.results["config"]
        settings = {name: config.get(name) for name in ("backbone", "pretrain", "data")}
        backbone = config.get("backbone")
        trained = isinstance(backbone, Mapping) and not backbone.get("frozen", True)
        own = f" of seed {self.results['seed']}" if trained else ""
        return f"{json.dumps(settings, sort_keys=True)}{own}"

    @property
    def task(self) -> str:
        results = self.results
        return f"{results['data']} {task_name(results)}, {split_name(results)}"

    @property
    def data(self) -> str:
        """First characters of the hash of the data set; '' for a simulator."""
        return str(self.results.get(FINGERPRINT, "unknown") or "")[:8]

    @property
    def tasks(self) -> tuple[tuple[str, str], ...]:
        """Settings that determine the test tasks. Runs with equal values can be compared task by task.

        A run without a recorded hash of its data is comparable only to itself.
        """
        results, config = self.results, self.results.get("config", {})
        # Older runs lack the fields of settings that are off (0 or []).
        named = {name: results[name] for name in TASKS if results.get(name) or name == "seed"}
        if results.get("query_counts"):
            named = {name: value for name, value in named.items() if name not in IGNORED}
        named[FINGERPRINT] = results.get(FINGERPRINT, f"not recorded in {self.folder.resolve()}")
        named |= {f"data.{k}": v for k, v in config.get("data", {}).items() if k not in OTHER_DATA_SETTINGS}
        if results.get("base_query"):  # base queries are drawn from the held-out inputs
            named["pretrain.holdout_per_class"] = config["pretrain"]["holdout_per_class"]
        return tuple((name, str(value)) for name, value in sorted(named.items()))


def find_runs(paths: Sequence[str]) -> list[Run]:
    """Read every run and evaluation in or below the folders, each run before its evaluations.

    Runs that are not finished are left out, with a note.

    Raises:
        UsageError: a folder does not exist, or has no finished run.
    """
    runs = []
    for path in map(user_path, paths):
        if not path.is_dir():
            raise UsageError(f"expected a folder with finished runs, got no folder {path}; fix the path")
        finished, started = _folders_with("results.json", path), _folders_with("checkpoint.pt", path)
        unfinished = [folder for folder in started if folder not in finished]
        if not finished:
            refuse_without_results(unfinished[0] if unfinished else path)
        for folder in unfinished:
            print(f"note: left out {folder}: it has a checkpoint.pt, but no results.json", file=sys.stderr)
        runs += [read_run(folder) for folder in finished]
    return runs


def _folders_with(name: str, path: Path) -> list[Path]:
    """Return the folders in or below a folder that have a file of this name, each before the folders below it."""
    return sorted((file.parent for file in path.rglob(name)), key=lambda folder: (len(folder.parts), folder))


def read_run(folder: Path) -> Run:
    """Read the results of a finished run.

    Raises:
        UsageError: the folder lacks files of a finished run, or they are damaged.
    """
    file = "results.json"
    if not (folder / file).is_file():
        refuse_without_results(folder)
    try:
        results = json.loads((folder / file).read_text())
        file = "tasks.npz"
        archive = read_npz(folder / file)
        per_task = {name: archive[name] for name in SCORES if name in archive or name in NEEDED_SCORES}
        _check_contents(results, per_task, archive.get(GROUP))
        if results.get(JOINT_BOUND) is None:
            per_task.pop("joint_nll", None)
        return Run(folder, without_old_joint(results), per_task, archive.get(GROUP))
    except DAMAGED as error:
        raise UsageError(
            f"expected a finished run in {folder}, got damaged files: {file}: {reason_of(error)}; run it again"
        ) from None


def _check_contents(results: Any, per_task: Mapping[str, np.ndarray], groups: np.ndarray | None) -> None:
    """Check that results.json and tasks.npz have the entries that tables and plots need."""
    if missing := sorted(NEEDED - (results.keys() if isinstance(results, dict) else set())):
        raise ValueError(f"results.json lacks {', '.join(missing)}")
    if malformed := [name for name, scores in per_task.items() if scores.ndim != 1 or scores.dtype.kind != "f"]:
        raise ValueError(f"tasks.npz does not have one number per task in {', '.join(malformed)}")
    if groups is not None and groups.shape != per_task["nll"].shape:
        raise ValueError("tasks.npz does not have one group per task")
    check_plain(results)
    if not isinstance(results["config"], dict):
        raise ValueError("results.json has no settings")


def _used(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the settings that define a row, without pretrain.seed.

    For a regression, all settings of pretraining and of classes are also left out.
    """
    of_numbers = ("pretrain.", "task.way", "task.query_", "task.base_query", "task.train_query")
    idle = ("pretrain.seed",) if "accuracy" in run.per_task else of_numbers
    return {name: value for name, value in settings.items() if not name.startswith(idle)}


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run: its guide, and the settings that differ among runs of this guide on this task."""
    by_guide = defaultdict(list)
    configs = [{k: v for k, v in run.results["config"].items() if k not in WITHOUT_MEANING} for run in runs]
    settings = [_used(dict(flatten(config)), run) for config, run in zip(configs, runs, strict=True)]
    for run, setting in zip(runs, settings, strict=True):
        by_guide[run.results["guide"], run.task].append(setting)
    names = []
    for run, setting in zip(runs, settings, strict=True):
        family = by_guide[run.results["guide"], run.task]
        names_of_family = {name for setting_of_run in family for name in setting_of_run}
        if len(of_task := {other.results.get(FINGERPRINT) for other in runs if other.task == run.task}) == 1:
            names_of_family -= {"data.path"} if of_task != {None} else set()  # copies of the same data
        differ = sorted(
            name for name in names_of_family if len({repr(setting_of_run.get(name)) for setting_of_run in family}) > 1
        )
        names.append(" ".join([run.results["guide"], *(f"{name}={setting.get(name)}" for name in differ)]))
    return names


def task_names(runs: Sequence[Run]) -> list[str]:
    """Return data and task of each run as text, with the hash of the data if different data have the same name."""
    data = defaultdict(set)
    for run in runs:
        data[run.task].add(run.data)
    return [f"{run.task}, data {run.data}" if len(data[run.task]) > 1 else run.task for run in runs]


def group_by_label(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group runs that differ only in seed and backbone, as {(data and task, label): runs}; drop repeated runs."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, task, label in zip(runs, task_names(runs), labels(runs), strict=True):
        group = groups[task, label]
        if all((run.tasks, run.backbone) != (kept.tasks, kept.backbone) for kept in group):
            group.append(run)
        else:
            print(f"note: left out {run.folder}: same settings, tasks and backbone as an earlier run", file=sys.stderr)
    return dict(groups)
