"""Terms (effects | group) of a formula in the notation of lme4, for one kind of groups or for nested groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_metabayes.errors import UsageError

EXAMPLE = "score ~ hours + (hours | school)"
NAME = re.compile("`[^`]*`")
BAR = "(bar {})"  # stands for a term (effects | group) while the rest is parsed


def check_parentheses(formula: str) -> None:
    """Raise a UsageError if a parenthesis of a formula is not closed, or not opened. Names in backticks are skipped."""
    depth = lowest = 0
    for sign in _without_names(formula):
        depth += (sign == "(") - (sign == ")")
        lowest = min(lowest, depth)
    if lowest or depth:
        which, remedy = ("opened", "add ( or remove )") if lowest else ("closed", "add ) or remove (")
        raise UsageError(
            f"expected balanced parentheses in data.formula, got '{formula}', in which one is not {which}; {remedy}"
        )


def _without_names(text: str) -> str:
    """Replace each name in backticks by backticks of the same number, since a name may contain any sign."""
    return NAME.sub(lambda name: "`" * len(name[0]), text)


def without_bars(text: str) -> tuple[str, list[str]]:
    """Replace each (effects | group) in the text by a placeholder; returns the new text and the replaced terms.

    The parentheses of the text are balanced.
    """
    bars: list[str] = []
    depth, start, rest, signs = 0, 0, "", _without_names(text)
    for place, sign in enumerate(signs):
        if sign == "(":
            start = place if depth == 0 else start
            depth += 1
        elif sign == ")":
            depth -= 1
        if depth == 0 and sign == ")" and "|" in signs[start:place]:
            bars.append(text[start + 1 : place])
            rest += f"`{BAR.format(len(bars))}`"
        elif depth == 0 and sign == ")":
            rest += text[start : place + 1]
        elif depth == 0:
            rest += text[place]
    return rest, bars


def grouping_of(bars: Sequence[str], formula: str) -> tuple[str, str, str | None]:
    """Return effects, group and inner group of the terms (effects | group); the inner group may be None.

    Raises:
        UsageError: there is no term, or the terms describe another model.
    """
    shown = " and ".join(f"({bar.strip()})" for bar in bars)
    if not bars:
        raise UsageError(
            f"expected a term (effects | group) in data.formula, as in '{EXAMPLE}', got '{formula}'; add such a term"
        )
    if any("||" in bar for bar in bars):
        raise UsageError(
            f"expected one bar in {shown}, got two, which mean uncorrelated effects; write one bar, set "
            "prior=gaussian, and centre the predictors"
        )
    terms = [(effects.strip(), group.strip()) for effects, _, group in (bar.rpartition("|") for bar in bars)]
    if len(terms) == 2 and (nested := _nested(terms)):
        return nested
    if len(terms) > 1:
        same = len({group for _, group in terms}) == 1
        kind, remedy = ("uncorrelated effects", "write one term with all effects and set prior=gaussian")
        if not same:
            kind, remedy = ("crossed groups", "keep one of these terms; nested groups are (1 | a/b)")
        raise UsageError(f"expected one term (effects | group) in data.formula, got {shown}: {kind}; {remedy}")
    return _one_term(*terms[0], shown)


def _nested(terms: Sequence[tuple[str, str]]) -> tuple[str, str, str] | None:
    """Return effects, a and b of the terms (effects | a) and (1 | a:b) or (1 | b:a), in any order; else None."""
    for (effects, group), (inner_effects, pair) in (terms, terms[::-1]):
        columns = [column.strip() for column in pair.split(":")]
        if len(columns) == 2 and group in columns and inner_effects == "1":
            return effects, group, columns[1 - columns.index(group)]
    return None


def _one_term(effects: str, group: str, shown: str) -> tuple[str, str, str | None]:
    """Return effects, group and inner group of (effects | group) or (1 | group/inner); others raise a UsageError."""
    parts = [part.strip() for part in group.split("/")]
    if ":" in group:
        raise UsageError(
            f"expected one column of groups in {shown}, got groups of several columns; write the pairs as a column of "
            "the file"
        )
    if len(parts) > 2:
        raise UsageError(
            f"expected at most two levels of groups in {shown}, got {len(parts)}; write + {parts[0]} + (1 | "
            f"{'/'.join(parts[1:3])}), in which {parts[0]} is a factor"
        )
    if len(parts) == 2 and effects != "1":
        raise UsageError(
            f"expected only an intercept for '{parts[1]}' in {shown}, got other effects; write "
            f"({effects} | {parts[0]}) + (1 | {parts[0]}:{parts[1]})"
        )
    return effects, parts[0], parts[1] if len(parts) == 2 else None
