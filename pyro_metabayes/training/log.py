"""The log of a training run: one line per logged step, in memory and in metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.untrusted import DAMAGED, within


def null_nonfinite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values that are not finite by None, which is null in JSON. JSON has no NaN.

    Args:
        line: {name: metric} of one logged step.
    """
    return {name: _or_null(value) for name, value in line.items()}


def _or_null(value: Any) -> Any:
    if isinstance(value, Mapping):  # one metric per latent site
        return null_nonfinite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file. If the line does not fit on the disk, the file stays unchanged.

    Args:
        path: the file.
        line: {name: value}.

    Raises:
        UsageError: the line could not be written.
    """
    content = (json.dumps(line) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            complete = file.write(content) == len(content)
            reason = "no space left"
        except OSError as error:
            complete, reason = False, error.strerror or str(error)
        if not complete:
            file.truncate(end)
            raise UsageError(f"expected to write a line into {path}, got: {reason}; free space or change the folder")


def truncate_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of all steps after number `step` from a log file, and return the remaining lines.

    A training that is resumed at `step` repeats the removed steps.
    """
    if not path.exists():
        return []
    lines, parsed = [], []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(*DAMAGED):  # after a power failure the last line may be incomplete
            if (values := json.loads(line))["step"] <= step:
                lines.append(line)
                parsed.append(dict(values))
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in lines)))
    return parsed


class Log:
    """Log of a training run: the metrics of each logged step, in memory and in the file metrics.jsonl.

    Attributes:
        lines: {name: metric} of each logged step, with None for values that are not finite.

    Args:
        folder: folder of metrics.jsonl; None: no file is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "metrics.jsonl"
        self.lines: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Read the lines of the steps up to `step` from the file, and remove the lines of later steps."""
        if self._path is not None:
            self.lines = truncate_after(within(self._path.parent, self._path.name), step)

    def append(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Add the metrics of a step. Return the stored line, with None for values that are not finite."""
        kept = null_nonfinite(line)
        if self._path is not None:
            append(self._path, kept)
        self.lines.append(kept)
        return kept

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether `patience` validations or more have passed since the smallest validation NLL.

        Training then ends early. With `patience` None, the result is always false.
        """
        if patience is None or not (scores := validation_scores(self.lines)):
            return False
        return len(scores) - 1 - scores.index(min(scores)) >= patience


def validation_scores(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the NLL of each validation in nats per query; infinity for an NLL that was not finite."""
    return [math.inf if line["val_nll"] is None else line["val_nll"] for line in lines if "val_nll" in line]


@dataclass(frozen=True)
class History:
    """Result of a training: the logged metrics, and how the training ended.

    Attributes:
        lines: {name: metric} of each logged step. Metrics are step, seconds, the terms of the loss in nats per task,
            scores of the approximate posterior, and metrics of posterior collapse. Validated steps also have val_nll
            and the Monte-Carlo bias val_nll_bias in nats per query. In classification they have val_accuracy, 0 to 1.
        steps: number of steps taken.
        stopped_early: whether training ended early because the validation NLL no longer decreased (`patience`).
        seconds: training time in seconds.
        skipped: number of steps skipped because the loss or a gradient was not finite.
    """

    lines: Sequence[Mapping[str, Any]]
    steps: int
    stopped_early: bool
    seconds: float
    skipped: int

    @property
    def best(self) -> Mapping[str, Any]:
        """Metrics of the validated step with the smallest validation NLL.

        After the training, the learner has the weights of this step if its NLL is finite.

        Raises:
            UsageError: there was no validation, since the training has 0 steps.
        """
        if not (scores := validation_scores(self.lines)):
            raise UsageError("expected a training with a validation, got a training of 0 steps; set steps >= 1")
        return [line for line in self.lines if "val_nll" in line][scores.index(min(scores))]

    def curve(self, name: str) -> tuple[list[int], list[Any]]:
        """Return the data for a plot of the metric `name` over the steps.

        Returns:
            The logged steps that have this metric, and the values of the metric at these steps.
        """
        lines = [line for line in self.lines if line.get(name) is not None]
        return [line["step"] for line in lines], [line[name] for line in lines]


def progress_values(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics of the progress bar as text: loss, and accuracy or NLL. A skipped step has none: {}."""
    if line["loss"] is None:
        return {}
    formats = {"loss": "{:.4g}"} | ({"nll": "{:.3f}"} if line["accuracy"] is None else {"accuracy": "{:.1%}"})
    return {name: form.format(line[name]) for name, form in formats.items() if line[name] is not None}
