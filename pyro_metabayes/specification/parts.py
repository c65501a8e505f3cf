"""Construction of the parts of a learner from a specification: the plain values in checkpoints and YAML files.

The parts are backbone, head, prior, model, guide and objective. A specification has an entry for each part,
{part: {_target_: name of a class, setting: value}}, and entries for arguments that several parts share:

    input_shape     shape of one input of the backbone
    num_classes     number of classes per task
    particles       number of samples of the weights w per task in the loss
    num_targets     size of one label of a regression; 0: labels are classes
    num_weights     number of weights per class, if it does not follow from the number of features and the head

A source of tasks may provide further shared arguments in its attribute `context`.

No setting of a part may have the name of a shared argument.
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
# Constructor arguments that `build_parts` provides, so that the entry of a part in a specification must not set them.
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
    """Raise a UsageError if a setting in a specification is unknown or has a wrong type. Nothing is built."""
    for part in PARTS:
        if specification.get(part):
            check(specification[part], part, CONTEXT, prefixes)


def shared_values(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a specification that are shared by several parts, such as num_classes."""
    return {name: value for name, value in specification.items() if name not in PARTS}


def build_parts(specification: Mapping[str, Any], prefixes: Sequence[str] = PREFIXES) -> Parts:
    """Build all parts of a learner from a specification.

    A constructor receives the settings of its part. If it has an argument with the name of a shared value or of another
    part, it receives this value or part too. An entry that is already an object is used unchanged.

    Args:
        specification: {part: settings or object} and shared values.
        prefixes: prefixes of the class names that may be imported.
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
