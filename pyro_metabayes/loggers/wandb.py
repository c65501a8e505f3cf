"""Logger for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.loggers.run_log import missing_package

MODES = ("online", "offline", "disabled")


class WandB:
    """Logger that writes to a new run of Weights & Biases.

    A resumed training also writes its earlier steps to the new run.

    Args:
        folder: the folder of the training. The files of Weights & Biases are in the subfolder wandb.
        name: the name of the run.
        project: the project.
        entity: the user or team that owns the run; None: the user who is logged in.
        mode: `online`, `disabled`, or `offline` (only files; `wandb sync` uploads them later).

    Raises:
        UsageError: the package wandb is not installed, or the run cannot be started.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        project: str = "pyro_metabayes",
        entity: str | None = None,
        mode: str = "online",
    ) -> None:
        check_choice("logger.mode", mode, MODES)
        try:
            import wandb
        except ImportError:
            raise missing_package("wandb", "wandb") from None
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(project=project, entity=entity, name=name, dir=folder, mode=mode)  # type: ignore[arg-type]
        except wandb.Error as error:
            remedy = "log in with `wandb login`, or set logger.mode=offline"
            raise UsageError(f"expected wandb to start a run, got the error: {_reason_of(error)}; {remedy}") from None

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _reason_of(error: Exception) -> str:
    """Return the message of a wandb error without sentences on the login; the UsageError says how to log in."""
    sentences = " ".join(str(error).split()).removesuffix(".").split(". ")
    return ". ".join([sentences[0], *(sentence for sentence in sentences[1:] if "login" not in sentence)])
