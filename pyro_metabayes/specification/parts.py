"""Builds the parts of a learner from a specification, the plain values in checkpoints and YAML files.

A specification is {part: {_target_: name, setting: value}} for the PARTS, and the values that several parts share:

    input_shape     *X
    num_classes     number of classes per task
    particles       samples of w per task in the loss
    num_targets     size of a label of a regression; 0: labels are classes
    num_weights     number of weights per class, if it is neither the number of features nor that of the head
    and the counts that the source of tasks provides (its `context`)

No setting of a part may have the name of a shared value.
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
# Arguments of constructors that the builder provides, and that no specification of a part may set.
CONTEXT = (
    *("input_shape", "num_classes", "num_targets", "num_features", "num_weights", "particles"),
    *("model", "head", "prior"),
)


class Parts(NamedTuple):
    """The parts from which a learner is constructed."""

    backbone: Backbone
    model: Model
    guide: Guide
    objective: Objective


def check_parts(specification: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES) -> None:
    """Raise a UsageError if a specification has unknown names or wrong types, before anything is built."""
    for part in PARTS:
        if specification.get(part):
            check(specification[part], part, CONTEXT, prefixes)


def shared_values(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a specification that parts share."""
    return {name: value for name, value in specification.items() if name not in PARTS}


def build_parts(specification: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES) -> Parts:
    """Build all parts, each from its specification and from the shared values and parts that it needs.

    A part that is an object is used unchanged.
    """
    context: dict[str, Any] = {"num_targets": 0} | shared_values(specification)
    backbone = _built("backbone", specification, prefixes, context)
    context["num_features"] = backbone.num_features
    context.setdefault("num_weights", backbone.num_features)
    if head := _built("head", specification, prefixes, context):
        context["head"] = head
        if backbone.num_features is not None:
            context["num_weights"] = head.num_weights(backbone.num_features)
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
