"""Loggers for a CSV file and for TensorBoard, based on Lightning Fabric."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_metabayes.loggers.run_log import missing_package

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger


class _InFolder:
    """Logger that passes metrics to a logger of Lightning Fabric. The files are in a subfolder of the run."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(metrics), step)

    def close(self, failed: bool) -> None:
        self._logger.finalize("failed" if failed else "success")


class Csv(_InFolder):
    """Logger that writes RUN_DIR/csv/metrics.csv, a table with one row per logged step and one column per metric.

    Args:
        folder: the folder of the run, RUN_DIR.
    """

    def __init__(self, folder: Path | str) -> None:
        from lightning_fabric.loggers import CSVLogger  # takes a second, so it is not imported with the package

        _remove(Path(folder) / "csv")
        super().__init__(CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1))

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: .hydra and results.json already contain the settings."""


class TensorBoard(_InFolder):
    """Logger that writes events to RUN_DIR/tensorboard, shown by `tensorboard --logdir RUN_DIR`.

    Args:
        folder: the folder of the run, RUN_DIR.

    Raises:
        UsageError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        if find_spec("tensorboard") is None:
            raise missing_package("tensorboard", "tensorboard")
        from lightning_fabric.loggers import TensorBoardLogger

        _remove(Path(folder) / "tensorboard")
        super().__init__(TensorBoardLogger(folder, name="", version="tensorboard"))

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of the run as text."""
        rows = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        self._logger.experiment.add_text("settings", rows)  # type: ignore[attr-defined]


def _remove(folder: Path) -> None:
    """Remove the files of an interrupted training; the resumed training writes all lines again."""
    shutil.rmtree(folder, ignore_errors=True)
