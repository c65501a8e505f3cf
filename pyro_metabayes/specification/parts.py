"""From a specification, the plain values of checkpoints and YAML, to the parts of a learner.

A specification is {part: {_target_: name, setting: value}} for the PARTS, and beside them the values that several
parts share: input_shape, num_classes, particles, num_targets (the size of a label that is numbers; 0: labels are
classes), num_weights (where it is neither the number of features nor the head's) and what the source of tasks
provides (its `context`). No setting of a part may have the name of a shared value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.build import PREFIXES, build, check
from pyro_metabayes.guide import Guide
from pyro_metabayes.model import Model
from pyro_metabayes.objectives.objective import Objective
from pyro_metabayes.specification.recorded import Recorded

PARTS = ("backbone", "head", "prior", "model", "guide", "objective")
REQUIRED = ("backbone", "model", "guide", "objective")
# What parts may ask for by the name of a constructor's argument, and no specification of a part may set.
CONTEXT = (
    *("input_shape", "num_classes", "num_targets", "num_features", "num_weights", "particles"),
    *("model", "head", "prior"),
)


class Parts(NamedTuple):
    """What a learner is constructed from."""

    backbone: Backbone
    model: Model
    guide: Guide
    objective: Objective


def check_parts(specification: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES) -> None:
    """Refuse a specification with unknown names or wrong types, before anything is built."""
    for part in PARTS:
        if specification.get(part):
            check(specification[part], part, CONTEXT, prefixes)


def shared_values(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a specification that parts share."""
    return {name: value for name, value in specification.items() if name not in PARTS}


def build_parts(specification: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES) -> Parts:
    """Build all parts, each from its specification and what it asks for of the others.

    A part that is an object already stays as it is.
    """
    context: dict[str, Any] = {"num_targets": 0} | shared_values(specification)
    backbone = _built("backbone", specification, prefixes, context)
    context["num_features"] = backbone.num_features
    context.setdefault("num_weights", backbone.num_features)
    if head := _built("head", specification, prefixes, context):
        context |= {"head": head, "num_weights": head.num_weights(backbone.num_features)}
    if prior := _built("prior", specification, prefixes, context):
        context["prior"] = prior
    context["model"] = _built("model", specification, prefixes, context)
    guide = _built("guide", specification, prefixes, context)
    return Parts(backbone, context["model"], guide, _built("objective", specification, prefixes, context))


def _built(part: str, specification: Mapping[str, Any], prefixes: Sequence[str], context: dict[str, Any]) -> Any:
    value: Any = specification[part] if part in REQUIRED else specification.get(part)
    if isinstance(value, Recorded):
        return value
    return build(value, part, prefixes, **context) if value or part in REQUIRED else None
