"""Runs a study and writes its tables. Finished runs are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import Interrupted
from pyro_metabayes.experiments.cli.sweeps import another_folder
from pyro_metabayes.experiments.studies.run_grid import run_grid
from pyro_metabayes.experiments.studies.study import Row, chosen_rows, claim, complete, jobs_of

Write = Callable[[dict[str, Any], list[Row], Path], None]


@dataclass
class StudyConfig:
    """Settings of a command that runs a study."""

    study: dict[str, Any]  # runs of a study, listed in conf/study/NAME.yaml
    size: str = "full"  # full, or smoke: a few training steps of one seed, to test that all rows run
    parts: list[str] = field(default_factory=list)  # names of the parts of the study to run; empty: all parts
    workers: int = 2  # number of runs in parallel, each on one thread


def run_study(config: Any, name: str, folder: Path, write: Write) -> None:
    """Train and evaluate the unfinished runs of a study, then write the tables of all finished parts.

    Args:
        config: a `StudyConfig`.
        name: text that identifies the study, to refuse a folder that holds another study.
        folder: the folder of the study.
        write: function that writes tables and plots, given the study, the rows with finished runs, and the folder.
    """
    rows = chosen_rows(config.study, config.size, config.parts)
    advice = another_folder()
    claim(folder, name, advice)
    runs, evaluations = jobs_of(rows, folder, config.study["evaluations"])
    try:
        run_grid(runs, config.workers, "study", advice)
        run_grid(evaluations, config.workers, "evaluate", advice)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished runs are kept: the same command continues the study") from None
    all_rows = chosen_rows(config.study, config.size, ())
    write(config.study, complete(all_rows, folder), folder)  # also parts that were finished earlier
