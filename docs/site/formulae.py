"""Converts ```math blocks to SVG images, which need no script, font or network. GitHub renders the same source."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from pymdownx.superfences import SuperFencesException

POINTS = 13
# Operators. LaTeX puts spaces around them, matplotlib does not.
LIMIT = r"\s*[_^]\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?\w)"
LARGE = re.compile(rf"\\(?:sum|prod|int)(?![a-z])(?:{LIMIT})*")
AFTER_A_SYMBOL = re.compile(r"(?<=[\w}])\s*(?=\\(?:sum|prod|int|log|cos|exp)(?![a-z]))")
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)  # date and program, which the search would find


def as_svg(source: str, *_: Any, **__: Any) -> str:
    """Convert a block, which is one formula in the subset of LaTeX that matplotlib reads."""
    formula, file = " ".join(source.split()), io.StringIO()
    with matplotlib.rc_context({"mathtext.fontset": "cm", "svg.fonttype": "path", "svg.hashsalt": formula}):
        try:
            math_to_image(f"${spaced(formula)}$", file, prop=FontProperties(size=POINTS), format="svg")
        except ValueError as error:  # another exception would go unnoticed
            raise SuperFencesException(f"not a formula: {formula}\n{error}") from error
    drawing = METADATA.sub("", file.getvalue().partition("<svg ")[2])
    return f'<div class="formula"><svg role="img" aria-label="{html.escape(formula)}" {drawing}</div>'


def spaced(formula: str) -> str:
    return AFTER_A_SYMBOL.sub(r"\\, ", LARGE.sub(r"\g<0>\\,", formula))
