"""python -m experiments.collapse study=demonstration: prior collapse and scores by training objective.

A study is a list of runs of experiments.run with different settings (conf/study/NAME.yaml). Finished runs are kept, so
the same command continues an interrupted study. The default study, demonstration, takes two minutes. The command writes
table.md, table.csv and plots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.collapse.plots import PLOTS
from pyro_metabayes.experiments.runs.tables import markdown_table, save_tables
from pyro_metabayes.experiments.studies.run_study import StudyConfig, run_study
from pyro_metabayes.experiments.studies.study import Row
from pyro_metabayes.experiments.studies.tables import commands, table_of


def main(composed: DictConfig, folder: Path) -> None:
    config: Any = OmegaConf.to_object(composed)
    run_study(config, f"study={HydraConfig.get().runtime.choices['study']} size={config.size}", folder, write)


def write(study: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write table.md (with the command that reruns each row), table.csv, and the plots that the study lists."""
    parts = {part: [row for row in rows if row.part == part] for part in dict.fromkeys(row.part for row in rows)}
    tables = {part: table_of(part_rows, folder) for part, part_rows in parts.items()}
    sections = [f"## {part}\n\n{markdown_table(table)}\n\n{commands(parts[part])}" for part, table in tables.items()]
    columns = list(dict.fromkeys(name for table in tables.values() for row in table for name in row))
    merged = [
        {"part": part} | {name: row.get(name, "-") for name in columns} for part in tables for row in tables[part]
    ]
    save_tables(folder, "\n\n".join(sections) + "\n", merged)
    for part, table in tables.items():
        print(f"{part}\n{text_table(table)}\n")
    for name, labels in study["pictures"].items():
        if path := PLOTS[name](labels or [], rows, folder):
            print(f"plot: {path}")
    print(f"table.md and table.csv: {folder}")


if __name__ == "__main__":
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)
    run_command(main, "collapse")
