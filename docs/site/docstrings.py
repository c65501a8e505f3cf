"""Docstrings are plain text with indented formulae: what Markdown would take for emphasis or links is escaped."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SPECIAL = re.compile(r"([*_\[\]])")
QUOTED = re.compile(r"(`[^`]*`)")


class PlainDocstrings(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(map(escaped, obj.docstring.value.splitlines()))


def escaped(line: str) -> str:
    """The line as Markdown that shows it; formulae (indented) and `names` are shown as they are anyway."""
    if line.startswith("    "):
        return line
    parts = QUOTED.split(line)
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part).replace("<", "&lt;") for part in parts)
