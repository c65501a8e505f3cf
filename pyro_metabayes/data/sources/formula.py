"""Parses a formula in the notation of lme4, such as score ~ hours + (hours | school).

The result is the role of each column, such as response, predictor or group (`roles.Roles`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_metabayes.data.sources.header import Name
from pyro_metabayes.data.sources.roles import PRODUCT, Roles
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.errors import UsageError

EXAMPLE = "score ~ hours + (hours | school)"
COLUMN = re.compile(r"`([^`]+)`|([^\W\d][\w.]*)")  # names as in R; any other name in backticks
CALL = re.compile(r"(\w+)\((.*)\)")
FACTOR = ("factor", "C", "as.factor")
BAR = "(bar {})"  # stands for a term (effects | group) while the rest is parsed


@dataclass
class Terms:
    """Terms of a sum in a formula, by kind.

    effects: columns, or products of columns such as "a:b".
    factors: columns within factor(...).
    offsets: columns within offset(...).
    others: names that stand for terms (effects | group) while the sum is parsed.
    """

    effects: list[str] = field(default_factory=list)
    factors: list[str] = field(default_factory=list)
    offsets: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    intercept: bool = False


def roles_of_formula(formula: str, weights: Name = None, offset: Name = None) -> Roles:
    """Return the columns in the formula of a linear mixed model with one grouping, by role.

    A formula may contain columns, + - * : ^ and parentheses, factor(x), offset(x), 1, and one term (effects | group).

    Args:
        formula: such as "score ~ hours + (hours | school)".
        weights, offset: columns of weights and offsets, which the settings name beside the formula; None: no column.

    Raises:
        UsageError: the text is not a formula, or it describes a model that is not supported.
    """
    response, tilde, right = formula.partition("~")
    if not tilde or "~" in right or not response.strip():
        raise UsageError(f"expected data.formula like '{EXAMPLE}', got '{formula}'; fix the formula")
    fixed_text, bars = without_bars(right)
    effects_text, group = _one_bar(bars, formula)
    fixed, own = terms_of(fixed_text, formula), terms_of(effects_text, formula)
    _check(fixed, own, formula)
    if offset is not None and fixed.offsets:
        raise UsageError(f"expected one offset, got data.offset={offset} and another in '{formula}'; remove one")
    return Roles(
        group=_column(group, "group"),
        response=_column(response, "response"),
        predictors=fixed.effects,
        random=[*([INTERCEPT] if own.intercept else []), *own.effects],
        factors=list(dict.fromkeys(fixed.factors + own.factors)),
        weights=weights,
        offset=fixed.offsets[0] if fixed.offsets else offset,
    )


def without_bars(text: str) -> tuple[str, list[str]]:
    """Replace each (effects | group) in the text by a placeholder; returns the new text and the replaced terms."""
    bars: list[str] = []
    depth, start, rest = 0, 0, ""
    for place, sign in enumerate(text):
        if sign == "(":
            start = place if depth == 0 else start
            depth += 1
        elif sign == ")":
            depth -= 1
        if depth == 0 and sign == ")" and "|" in text[start:place]:
            bars.append(text[start + 1 : place])
            rest += f"`{BAR.format(len(bars))}`"
        elif depth == 0 and sign == ")":
            rest += text[start : place + 1]
        elif depth <= 0:
            rest += sign
    return rest + (text[start:] if depth > 0 else ""), bars


def _one_bar(bars: Sequence[str], formula: str) -> tuple[str, str]:
    """Return effects and group of the one term (effects | group); any other number of terms raises a UsageError."""
    shown = " and ".join(f"({bar.strip()})" for bar in bars)
    if not bars:
        raise UsageError(
            f"expected a term (effects | group) in data.formula, as in '{EXAMPLE}', got '{formula}'; add such a term"
        )
    if any("||" in bar for bar in bars):
        raise UsageError(
            f"expected one bar in {shown}, got two, which mean uncorrelated effects; write one bar and set "
            "prior=gaussian"
        )
    if len(bars) > 1:
        same = len({bar.rpartition("|")[2].strip() for bar in bars}) == 1
        kind, remedy = ("uncorrelated effects", "write one term with all effects and set prior=gaussian")
        if not same:
            kind, remedy = ("crossed or nested groups", "keep one of these terms")
        raise UsageError(f"expected one term (effects | group) in data.formula, got {shown}: {kind}; {remedy}")
    effects, _, group = bars[0].rpartition("|")
    _refuse_several_columns(bars[0].strip(), group)
    return effects, group


def _refuse_several_columns(bar: str, group: str) -> None:
    """Raise a UsageError for groups of several columns: nested groups a/b, and combinations a:b."""
    kind, remedy = "groups of several columns", "write the pairs as a column of the file"
    if "/" in group:
        outer, inner = (part.strip() for part in group.split("/", 1))
        kind, remedy = "nested groups", f"write + {outer} + (... | {inner}), in which {outer} is a factor"
    if "/" in group or ":" in group:
        raise UsageError(
            f"expected one column of groups in ({bar}), got {kind}; the model has one grouping only: {remedy}"
        )


def terms_of(text: str, formula: str) -> Terms:
    """Parse a sum of terms in the grammar of the package formulaic."""
    terms = Terms()
    for factors in _parsed(text, formula):
        if factors == ["1"]:
            terms.intercept = True
        elif len(factors) == 1 and factors[0].startswith("(bar "):
            terms.others.append(factors[0])
        elif len(factors) == 1 and factors[0].startswith("offset("):
            terms.offsets.append(_column(factors[0][7:-1], "offset"))
        else:
            terms.effects.append(PRODUCT.join(_effect(factor, terms) for factor in factors))
    return terms


def _effect(text: str, terms: Terms) -> str:
    """Return the column that a part of a product a:b names. For factor(x) it is x, which joins terms.factors."""
    call = CALL.fullmatch(text)
    if call and call[1] in FACTOR:
        terms.factors.append(_column(call[2], "factor"))
        return terms.factors[-1]
    if call or text.startswith("(bar "):
        raise UsageError(
            f"expected columns, factor(x) and offset(x) in data.formula, got '{text.replace('(bar ', '(group term ')}';"
            " write the result of other functions into columns of the file"
        )
    return text


def _parsed(text: str, formula: str) -> list[list[str]]:
    """Return the factors of each term as text: [["a"], ["a", "b"]] for a + a:b. Main effects come first."""
    try:
        from formulaic.errors import FormulaicError  # an optional package, which imports pandas
        from formulaic.parser import DefaultFormulaParser
    except ImportError:
        raise UsageError(
            "expected the package formulaic for data.formula, not found; run: pip install 'pyro_metabayes[formula]', "
            "or set data.group, data.response, data.predictors and data.random"
        ) from None
    try:
        terms = list(DefaultFormulaParser().get_terms(text or "1"))
        return [[factor.expr for factor in term.factors] for term in terms]
    except (FormulaicError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"expected data.formula like '{EXAMPLE}', got '{formula}' ({str(error).splitlines()[0]}); fix the formula"
        ) from None


def _column(text: str, role: str) -> str:
    found = COLUMN.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"expected the name of a column as {role} in data.formula, got '{text.strip()}'; write the result of "
            "functions into columns of the file, and put unusual names in backticks"
        )
    return found[1] or found[2]


def _check(fixed: Terms, own: Terms, formula: str) -> None:
    if not fixed.intercept:
        raise UsageError(f"expected a formula with intercept, got '{formula}'; remove 0 or -1")
    if len(fixed.offsets) > 1 or own.offsets:
        raise UsageError(
            f"expected at most one offset(x) in data.formula, outside of (effects | group), got '{formula}'; move "
            "the offset, or write the sum of several offsets into one column of the file"
        )
    if missing := [name for name in own.effects if name not in fixed.effects]:
        raise UsageError(
            f"expected '{missing[0]}' also outside of (effects | group), got '{formula}'; add + {missing[0]} (its mean "
            "effect over groups)"
        )
    if not own.effects and not own.intercept:
        raise UsageError(f"expected an effect before the bar, such as (1 | school), got '{formula}'; replace (0 | ...)")
