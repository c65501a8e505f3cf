"""metrics.jsonl: a line a logged step, every one of them whole."""

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


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Null for what is not finite: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """The line in one write; where the disk has no room for all of it, none of it stays."""
    content = (json.dumps(line) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            whole = file.write(content) == len(content)
            reason = "no room for it"
        except OSError as error:
            whole, reason = False, error.strerror or str(error)
        if not whole:
            file.truncate(end)
            raise UsageError(f"expected to write a line into {path}, got: {reason}; free or change the folder")


def cut_back(path: Path, step: int) -> None:
    """Drop the lines that were logged after the checkpoint: their steps will be taken again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(*DAMAGED):  # a power cut may leave half a line
            if json.loads(line)["step"] <= step:
                kept.append(line)
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def shown(line: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar says of a line; nothing of a skipped step."""
    if line["loss"] is None:
        return {}
    formats = {"loss": "{:.4g}"} | ({"nll": "{:.3f}"} if line["accuracy"] is None else {"accuracy": "{:.1%}"})
    return {name: how.format(line[name]) for name, how in formats.items() if line[name] is not None}
