"""Parses a formula in the notation of lme4, such as score ~ hours + (hours | school).

The result is the role of each column, such as response, predictor or group (`roles.Roles`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pyro_metabayes.data.sources.formula_bars import EXAMPLE, check_parentheses, grouping_of, without_bars
from pyro_metabayes.data.sources.header import Name
from pyro_metabayes.data.sources.roles import PRODUCT, Roles
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.errors import UsageError

COLUMN = re.compile(r"`([^`]+)`|([^\W\d][\w.]*)")  # names as in R; any other name in backticks
CALL = re.compile(r"(\w+)\((.*)\)")
NAMED = ("group", "inner", "response", "predictors", "random", "factors")  # roles of columns in every formula
FACTOR = ("factor", "C", "as.factor")


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
    """Return the columns in the formula of a linear mixed model, by role.

    A formula may contain columns, + - * : ^ and parentheses, factor(x), offset(x), 1, and one term (effects | group).
    For nested groups the term is (1 | a/b), or there are two terms, (effects | a) and (1 | a:b).

    Args:
        formula: such as "score ~ hours + (hours | school)".
        weights, offset: columns of weights and offsets, which the settings name beside the formula; None: no column.

    Raises:
        UsageError: the text is not a formula, or it describes a model that is not supported.
    """
    response, tilde, right = formula.partition("~")
    if not tilde or "~" in right or not response.strip():
        raise UsageError(f"expected data.formula like '{EXAMPLE}', got '{formula}'; fix the formula")
    check_parentheses(formula)
    fixed_text, bars = without_bars(right)
    effects_text, group, inner = grouping_of(bars, formula)
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
        inner=None if inner is None else _column(inner, "group"),
        named_in=dict.fromkeys([*NAMED, *(["offset"] if fixed.offsets else [])], "data.formula"),
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
    """Return the column that a part of a product a:b names. For factor(x), return x and add x to terms.factors."""
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
