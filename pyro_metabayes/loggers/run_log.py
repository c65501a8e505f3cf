"""Connection of a training to a logger: settings, logged steps and results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from pyro_metabayes.errors import UsageError, printable


class Logger(Protocol):
    """Interface of a logger. A new logger object starts a new record, and replaces files of an earlier record."""

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of the run by dotted name, such as train.steps."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of a training step: finite numbers by dotted name."""

    def close(self, failed: bool) -> None:
        """Finish the record; `failed` is True if the run ended with an exception."""


class RunLog:
    """Callback of `fit` that passes the logged steps of a training to a logger.

        with RunLog(Csv(folder="runs/a"), "runs/a") as log:
            fit(learner, train, val, steps=1000, folder="runs/a", callbacks=[log])

    The end of the with block closes the logger. A resumed training logs the steps before the interruption again. If the
    logger fails, a note is printed and the training continues; metrics.jsonl remains complete.

    Args:
        logger: the logger; None: nothing is logged.
        folder: the folder of the run, with metrics.jsonl.
        settings: settings of the run, a nested dict of plain values.
    """

    def __init__(self, logger: Logger | None, folder: Path | str, settings: Mapping[str, Any] | None = None) -> None:
        self._logger, self._file = logger, Path(folder) / "metrics.jsonl"
        self._last_step = 0
        if logger is not None:
            named = dict(flat(settings or {}))
            self._call(lambda: logger.log_settings(named))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (logger := self._logger) is not None:
            self._call(lambda: logger.close(failed=kind is not None))

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of a step. The first call also logs the earlier steps of a resumed training."""
        if not self._last_step:
            self._log_file(before=line["step"])
        self._log(line, line["step"])

    def log_results(self, results: Mapping[str, Any], step: int) -> None:
        """Log the metrics of an evaluation under names with the prefix "test_"; `step` counts training steps."""
        if not self._last_step:
            self._log_file(before=step + 1)
        self._log({f"test_{name}": value for name, value in results.items()}, step)

    def _log_file(self, before: int) -> None:
        lines = self._file.read_text().splitlines() if self._logger is not None and self._file.exists() else []
        for line in map(json.loads, lines):
            if line["step"] < before:
                self._log(line, line["step"])

    def _log(self, line: Mapping[str, Any], step: int) -> None:
        self._last_step = step
        if (logger := self._logger) is not None:
            metrics = {name: float(value) for name, value in flat(line) if is_number(value) and name != "step"}
            self._call(lambda: logger.log_metrics(metrics, step))

    def _call(self, action: Callable[[], object]) -> None:
        """Call a method of the logger. After an exception, print a note and stop calling the logger."""
        try:
            action()
        except Exception as error:
            name, self._logger = type(self._logger).__name__, None
            reason = printable(f"{type(error).__name__}: {error}")
            print(f"note: the logger {name} failed: {reason}; metrics.jsonl is complete", file=sys.stderr)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested mappings: {"a": {"b": 1}} gives ("a.b", 1)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def missing_package(package: str, extra: str) -> UsageError:
    """Return the error for a missing package of a logger; `extra` is the name of the logger and of the pip extra."""
    return UsageError(
        f"expected the package {package} for logger={extra}, not found; run: pip install 'pyro_metabayes[{extra}]'"
    )
