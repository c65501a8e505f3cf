"""Tables for a terminal, and wide tables that are split into narrow ones."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]  # cells by column
WIDTH = 100  # characters of a line
GAP = 2  # spaces between two columns
LABEL = 24  # a label of at most this number of characters is not wrapped
CELL = 12  # another cell of at most this number of characters is not wrapped
WORD = 40  # a longer word, such as a path, is broken
JOINED = "\N{NO-BREAK SPACE}"


def text_table(rows: Sequence[Row], keys: int = 1) -> str:
    """Format a table for a terminal, in lines of at most WIDTH characters.

    Columns whose cells are all "-" are left out. A single row is printed with one line per column. In a table of
    several rows, cells are wrapped at spaces. Columns that still do not fit are printed below, in further blocks.

    Args:
        rows: the rows, each a mapping from column to cell.
        keys: the number of label columns, with which each block begins.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns = {name: cells for place, (name, cells) in enumerate(columns.items()) if place < keys or {*cells} != {"-"}}
    if len(rows) == 1:
        first = 2 + max(map(len, columns))
        return "\n".join(
            textwrap.fill(cell, WIDTH, initial_indent=f"{name:{first}}", subsequent_indent=" " * first)
            for name, (cell,) in columns.items()
        )
    titled = [[name, *cells] for name, cells in columns.items()]
    return "\n\n".join(_block(block, keys) for block in _blocks(titled, keys))


def narrow(rows: Sequence[Row], width: int = WIDTH, columns: int = 7) -> list[list[Row]]:
    """Split a wide table into several tables, each with the first column.

    Args:
        rows: the rows of the wide table.
        width: largest width of a table in characters. A table of two columns may be wider.
        columns: largest number of columns.
    """
    first, *others = rows[0]
    widths = {name: 3 + max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}  # with the separator
    parts = [[first]]
    for name in others:
        wide = sum(widths[chosen] for chosen in (*parts[-1], name)) > width
        if len(parts[-1]) == columns or (wide and len(parts[-1]) > 1):
            parts.append([first])
        parts[-1].append(name)
    return [[{name: row[name] for name in part} for row in rows] for part in parts]


def _blocks(columns: Sequence[Sequence[str]], keys: int) -> list[list[Sequence[str]]]:
    """Split the columns of a table into blocks. A block fits into WIDTH once its cells are wrapped.

    Args:
        columns: the title and cells of each column.
        keys: the number of label columns, with which each block begins.
    """
    blocks = [list(columns[:keys])]
    for cells in columns[keys:]:
        if sum(_least_widths([*blocks[-1], cells], keys)) + GAP * len(blocks[-1]) > WIDTH and len(blocks[-1]) > keys:
            blocks.append(list(columns[:keys]))
        blocks[-1].append(cells)
    return blocks


def _least_widths(columns: Sequence[Sequence[str]], keys: int) -> list[int]:
    """Return the least width of each column. Words of at most WORD characters and short cells are not wrapped.

    A short cell has at most LABEL characters in the first `keys` columns, and at most CELL characters in other columns.
    """
    words = [min(WORD, max(len(word) for cell in cells for word in _words(cell))) for cells in columns]
    whole = [min(LABEL if place < keys else CELL, max(map(len, cells))) for place, cells in enumerate(columns)]
    return list(map(max, words, whole))


def _words(cell: str) -> list[str]:
    """Split a cell at the spaces where it may be wrapped. A mean and its interval "m +- i" stay together."""
    return [word.replace(JOINED, " ") for word in cell.replace(" +- ", f"{JOINED}+-{JOINED}").split(" ")]


def _block(columns: Sequence[Sequence[str]], keys: int) -> str:
    """Format one block of a table, with its widest columns wrapped until the block fits into WIDTH.

    Args:
        columns: the title and cells of each column.
        keys: the number of label columns.
    """
    widths, least = [max(map(len, cells)) for cells in columns], _least_widths(columns, keys)
    while sum(widths) + GAP * (len(widths) - 1) > WIDTH and widths != least:
        widest = max((place for place in range(len(widths)) if widths[place] > least[place]), key=widths.__getitem__)
        widths[widest] -= 1
    wrapped = [[_wrapped(cell, width) for cell in cells] for cells, width in zip(columns, widths, strict=True)]
    lines = [parts for row in zip(*wrapped, strict=True) for parts in itertools.zip_longest(*row, fillvalue="")]
    padded = [[f"{part:{width}}" for part, width in zip(parts, widths, strict=True)] for parts in lines]
    return "\n".join((" " * GAP).join(parts).rstrip() for parts in padded)


def _wrapped(cell: str, width: int) -> list[str]:
    joined = " ".join(word.replace(" ", JOINED) for word in _words(cell))
    return [line.replace(JOINED, " ") for line in textwrap.wrap(joined, width, break_on_hyphens=False)] or [""]
