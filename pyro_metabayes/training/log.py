"""metrics.jsonl: one complete line per logged step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.untrusted import DAMAGED


def null_nonfinite(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with None (null) for values that are not finite: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append the line in one write; if the disk has no room for all of it, nothing is appended."""
    content = (json.dumps(line) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            complete = file.write(content) == len(content)
            reason = "no room for it"
        except OSError as error:
            complete, reason = False, error.strerror or str(error)
        if not complete:
            file.truncate(end)
            raise UsageError(f"expected to write a line into {path}, got: {reason}; free or change the folder")


def truncate_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, the step of the checkpoint: these steps will be taken again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(*DAMAGED):  # after a power failure the last line may be incomplete
            if json.loads(line)["step"] <= step:
                lines.append(line)
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in lines)))


def progress_values(line: Mapping[str, Any]) -> dict[str, str]:
    """The values of a line that the progress bar shows; none for a skipped step."""
    if line["loss"] is None:
        return {}
    formats = {"loss": "{:.4g}"} | ({"nll": "{:.3f}"} if line["accuracy"] is None else {"accuracy": "{:.1%}"})
    return {name: form.format(line[name]) for name, form in formats.items() if line[name] is not None}
