"""Selects a few of many pairs that together cover every part and setting. A pair is a guide with other parts.

Slow tests run for the selected pairs only. `covering_first` marks all other pairs slow, so that `pytest -m slow` runs
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

from tests.pairs import Pair

PARTS = ("guide", "prior", "head", "objective", "model", "observe")


def _parts(pair: Pair) -> dict[str, str]:
    """The choices of a pair; a regression has no head."""
    return {part: getattr(pair, part) for part in PARTS if not (part == "head" and pair.regression)}


def goals(pair: Pair, together: Sequence[tuple[str, str]], settings: bool = True) -> set[tuple[str, ...]]:
    """What a pair covers: parts, settings of guide and model, and combinations of two parts."""
    parts = _parts(pair)
    single = {(part, choice) for part, choice in parts.items()}
    if settings:
        single |= {(pair.guide, name, str(value)) for name, value in pair.settings.items()}
        single |= {(pair.model, name, str(value)) for name, value in pair.model_settings.items()}
    return single | {(a, parts[a], b, parts[b]) for a, b in together if {a, b} <= parts.keys()}


def covering(
    pairs: Iterable[Pair], together: Sequence[tuple[str, str]] = (("guide", "model"),), settings: bool = True
) -> list[Pair]:
    """Select pairs that cover every part and setting, and every combination of two of the parts in `together`.

    The selection is greedy: the next pair is the first one that covers most of what is not covered yet.

    Args:
        pairs: the pairs to select from.
        together: pairs of parts whose combinations are covered; `every_two()` for all pairs of parts.
        settings: whether every setting of a guide and a model is covered too.
    """
    left = {str(pair): goals(pair, together, settings) for pair in pairs}
    named, wanted, chosen = {str(pair): pair for pair in pairs}, set().union(*left.values()), []
    while wanted:
        best = max(left, key=lambda name: len(left[name] & wanted))
        wanted -= left.pop(best)
        chosen.append(best)
    return [pair for name, pair in named.items() if name in set(chosen)]


def every_two() -> list[tuple[str, str]]:
    return list(combinations(PARTS, 2))


def covering_first(
    pairs: Sequence[Pair], together: Sequence[tuple[str, str]] = (("guide", "model"),), settings: bool = True
) -> list[Any]:
    """All pairs as parameters of a test. Pairs that `covering` leaves out are marked slow."""
    kept = {str(pair) for pair in covering(pairs, together, settings)}
    return [pair if str(pair) in kept else pytest.param(pair, marks=pytest.mark.slow) for pair in pairs]
