"""Changes of single pages that only the site needs; mkdocs calls these functions for each page."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"`[^`]*`")
CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
LONG = 30  # a table cell with more characters gets a larger least width
NUMBER = re.compile(r"[-+]?[\d.]+ (?:\+-|to) [-+]?[\d.]+%?")  # 0.5 +- 0.1, 0.4 to 0.6
PLOT = re.compile(r'<img [^>]*?\bsrc="([^"]+\.png)"[^>]*>')
MODULE = re.compile(r'(?<=doc-module-name">)[\w.]+')
PACKAGE = "<code>build/package/"  # where the reference reads the modules


def on_page_markdown(markdown: str, **_: Any) -> str:
    r"""Replace \| by | within the code of tables: GitHub needs the backslash, Python-Markdown would show it."""
    lines = markdown.split("\n")
    return "\n".join(_without_escaped_bars(line) if line.startswith("|") else line for line in lines)


def _without_escaped_bars(line: str) -> str:
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), line)


def on_page_content(html: str, **_: Any) -> str:
    """Mark long cells and numbers in tables, break names of modules at dots, link plots to their files in full size."""
    html = CELL.sub(_cell, html)
    html = MODULE.sub(lambda name: name[0].replace(".", ".<wbr>"), html)
    html = PLOT.sub(r'<a href="\1" title="Open in full size">\g<0></a>', html)
    return html.replace(PACKAGE, "<code>")


def _cell(cell: re.Match[str]) -> str:
    kind = ' class="long"' if len(TAG.sub("", cell[1])) > LONG else ""
    content = NUMBER.sub(r'<span class="number">\g<0></span>', cell[1])
    return f"<td{kind}>{content}</td>"
