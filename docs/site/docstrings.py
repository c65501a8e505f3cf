"""Converts docstrings, which are plain text with indented formulae and sections, to Markdown for the site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from griffe import Extension, Object

SPECIAL = re.compile(r"([*_\[\]])")
QUOTED = re.compile(r"(`[^`]*`)")
SECTION = re.compile(r"(Args|Attributes|Raises|Returns):")
ENTRY = re.compile(r"    ([\w.]+): (.*)")


class PlainDocstrings(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(as_markdown(obj.docstring.value.splitlines()))


def as_markdown(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a docstring, with the entries of each section as a list."""
    inside = False
    for line in lines:
        if SECTION.fullmatch(line):
            inside = True
            yield from (f"**{line.removesuffix(':')}**", "")
        elif not line.strip():
            inside = False
            yield line
        elif inside and (entry := ENTRY.fullmatch(line)):
            yield f"* `{entry[1]}`: {escaped(entry[2])}"
        else:
            yield escaped(line.strip() if inside else line)


def escaped(line: str) -> str:
    """Return Markdown that is displayed as this line. Indented formulae and `names` need no escapes."""
    if line.startswith("    "):
        return line
    parts = QUOTED.split(line)
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part).replace("<", "&lt;") for part in parts)
