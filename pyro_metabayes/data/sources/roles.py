"""Roles of the columns of a table in a regression in groups: group, response, predictors and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from pyro_metabayes.data.sources.header import Header, Name, matching
from pyro_metabayes.data.sources.scales import INTERCEPT
from pyro_metabayes.errors import UsageError

PRODUCT = ":"  # between the columns of an interaction


@dataclass(frozen=True)
class Roles:
    """Names of the columns of a regression in groups. Each field is named after a setting of data=groups.

    A predictor "a:b" is the column "a:b" if the file has one. Otherwise it is the product of the columns a and b.
    """

    group: Name
    response: Name
    predictors: Sequence[Name] = ()
    random: Sequence[Name] = (INTERCEPT,)
    factors: Sequence[Name] = ()
    weights: Name = None  # None: all rows have weight 1
    offset: Name = None  # None: 0
    inner: Name = None  # smaller groups within the groups; None: there are none
    named_in: Mapping[str, str] = field(default_factory=dict)  # for messages: where the user named the column of a role

    def setting_of(self, role: str) -> str:
        """Return where the user named the columns of a role, such as "data.group" or "data.formula"."""
        return self.named_in.get(role, f"data.{'group' if role == 'inner' else role}")

    def in_header(self) -> Roles:
        """Return the roles of a trained run, whose columns are fixed: only the header of another file can change."""
        return replace(self, named_in=dict.fromkeys((role.name for role in fields(self)), "the header of the file"))

    @property
    def nested(self) -> str:
        """Nested groups as the user named them, for messages."""
        setting = self.setting_of("group")
        if setting == "data.group":
            return f"data.group=[{self.group},{self.inner}]"
        return f"{self.group}/{self.inner} in {setting}"

    @property
    def beside(self) -> list[Name]:
        """Columns of weights and offsets, if there are any."""
        return [name for name in (self.weights, self.offset) if name is not None]

    @property
    def read(self) -> list[Name]:
        """Columns that a file must have, besides the column of groups."""
        parts = [part for name in self.predictors for part in parts_of(name)]
        inner = [] if self.inner is None else [self.inner]
        return [*inner, *dict.fromkeys(parts), self.response, *self.beside]


def parts_of(name: Name) -> list[Name]:
    """Return the columns a and b of a product "a:b", or the name itself if it is not a product."""
    return [*name.split(PRODUCT)] if isinstance(name, str) and PRODUCT in name else [name]


def term_of(name: Name, header: Header, setting: str) -> tuple[str, ...]:
    """Return the columns of the file that are multiplied in the predictor `name`: several for "a:b", else one.

    `setting` is the setting in which the user named the predictor, for messages.
    """
    names = [name] if matching(name, header.names) else parts_of(name)
    return tuple(header.name_of(part, setting) for part in names)


def check_names(roles: Roles, once: Mapping[str, str], terms: Sequence[tuple[str, ...]], random: Sequence[str]) -> None:
    """Raise a UsageError if a column has two roles, or one role twice.

    Args:
        roles: the roles, for messages.
        once: the columns that are not predictors, by role.
        terms: the columns of each predictor.
        random: the predictors with group-specific weights.
    """
    names, inputs = [PRODUCT.join(term) for term in terms], {part for term in terms for part in term}
    within = [name for name in once.values() if name in inputs and name not in names]  # in a product only
    places: dict[str, list[str]] = {}
    for role, name in [*once.items(), *(("predictors", name) for name in [*names, *within])]:
        places.setdefault(name, []).append(role)
    twice = {name: of for name, of in places.items() if len(of) > 1 or name == INTERCEPT}
    twice |= {name: ["random"] for name in random if random.count(name) > 1}
    if twice:
        name, of = next(iter(twice.items()))
        settings = " or ".join(dict.fromkeys(map(roles.setting_of, of)))
        constant = f" ('{INTERCEPT}' names the constant)" if name == INTERCEPT else ""
        raise UsageError(
            "expected different columns as group, response, predictors, weights and offset, and as random effects, got "
            f"'{name}' twice{constant}; remove it from {settings}"
        )


def check_margins(terms: Sequence[tuple[str, ...]]) -> None:
    """Raise a UsageError for an interaction without lower-order terms, or a term that names a column twice.

    The interaction a:b requires the terms a and b. R accepts a:b without a main effect, and then codes all levels of
    the factor. Here the first level is always the reference.
    """
    for term in terms:
        if len({*term}) < len(term):
            raise UsageError(
                f"expected different columns in '{PRODUCT.join(term)}', got one twice; "
                "write powers of a column into another column of the file"
            )
        margins = [tuple(name for name in term if name != left_out) for left_out in term] if len(term) > 1 else []
        there = {frozenset(other) for other in terms}
        if missing := [PRODUCT.join(margin) for margin in margins if frozenset(margin) not in there]:
            raise UsageError(
                f"expected '{missing[0]}' among the predictors beside the interaction '{PRODUCT.join(term)}', got "
                f"{', '.join(PRODUCT.join(other) for other in terms)}; add '{missing[0]}'"
            )
