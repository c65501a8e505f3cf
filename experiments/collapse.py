"""python -m experiments.collapse study=gaussian_mean: which objective keeps the prior alive, and what it costs.

Each study is a grid of runs of experiments.run (conf/study/NAME.yaml). Finished runs are kept, so an
interrupted study goes on when it is called again. Leaves table.md, table.csv and pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.collapse_pictures import PICTURES
from experiments.collapse_table import commands, table_of
from experiments.command import run_command
from experiments.run_grid import run_grid
from experiments.study import Row, chosen_rows, claim, complete, jobs_of
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.report import markdown_table, save_tables, text_table

Write = Callable[[dict[str, Any], list[Row], Path], None]


@dataclass
class StudyConfig:
    """Which study, and how it is run."""

    study: dict[str, Any]
    size: str = "full"  # full, smoke (a few steps of one seed: does it run?)
    parts: list[str] = field(default_factory=list)  # of the study; none named: all
    workers: int = 2  # runs side by side, each on one thread


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    run_study(config, f"study={HydraConfig.get().runtime.choices['study']} size={config.size}", folder, write)


def run_study(config: Any, name: str, folder: Path, write: Write) -> None:
    """Run what is not finished of a study, in a folder that is its own, and write what it shows."""
    rows = chosen_rows(config.study, config.size, config.parts)
    claim(folder, name)
    runs, evaluations = jobs_of(rows, folder, config.study["evaluations"])
    try:
        run_grid(runs, config.workers, "study")
        run_grid(evaluations, config.workers, "evaluate")
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished runs are kept: the same command continues the study") from None
    everything = chosen_rows(config.study, config.size, ())
    write(config.study, complete(everything, folder), folder)  # other parts that were finished before among them


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """table.md (with the command of every row), table.csv, and the pictures that the study asks for."""
    parts = {part: [row for row in rows if row.part == part] for part in dict.fromkeys(row.part for row in rows)}
    tables = {part: table_of(its, folder) for part, its in parts.items()}
    sections = [f"## {part}\n\n{markdown_table(its)}\n\n{commands(parts[part])}" for part, its in tables.items()]
    columns = list(dict.fromkeys(name for its in tables.values() for row in its for name in row))
    merged = [
        {"part": part} | {name: row.get(name, "-") for name in columns} for part in tables for row in tables[part]
    ]
    save_tables(folder, "\n\n".join(sections) + "\n", merged)
    for part, its in tables.items():
        print(f"{part}\n{text_table(its)}\n")
    for name, chosen in study["pictures"].items():
        if path := PICTURES[name](chosen or [], rows, folder):
            print(f"picture: {path}")
    print(f"table.md and table.csv: {folder}")


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "collapse")
