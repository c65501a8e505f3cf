"""Derivation of the specification of a learner (plain values that rebuild it) from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.build import provided_by_source
from pyro_metabayes.errors import UsageError
from pyro_metabayes.guide import Guide
from pyro_metabayes.model import Model
from pyro_metabayes.objectives.objective import Objective
from pyro_metabayes.seeding import drawing, noise_of
from pyro_metabayes.specification.parts import CONTEXT, PARTS, Parts
from pyro_metabayes.specification.recorded import Recorded, arguments_passed, plain, target_name

KINDS = (Backbone, Model, Guide, Objective)


def recorded_specification(parts: Parts) -> dict[str, Any]:
    """Return the specification of these parts: plain values that rebuild the parts.

    The values are the arguments that were passed to the constructors of the parts.
    """
    named = _named(parts)
    return dict.fromkeys(PARTS) | {name: _settings_of(name, part) for name, part in named.items()} | _shared_by(named)


def recorded_values(parts: Parts) -> dict[str, Any]:
    """Return the constructor arguments that the parts share, such as num_classes.

    Raises:
        UsageError: the parts do not fit together.
    """
    return _shared_by(_named(parts))


def described(parts: Parts) -> dict[str, Any]:
    """Describe the parts of a learner by class, settings and shared values, for comparisons of learners.

    Every learner has a description. If a setting of a part is not a plain value (number, text, list), the part is
    described by its class only.
    """
    named = _named(parts)
    return {name: _description(name, part) for name, part in named.items()} | _shared_by(named)


def _description(key: str, part: Recorded) -> dict[str, Any]:
    try:
        return _settings_of(key, part)
    except UsageError:
        return {"_target_": type(part).__qualname__}


def _named(parts: Parts) -> dict[str, Recorded]:
    """Return all parts by name: the given parts, and the prior and head with which they were constructed."""
    found: dict[str, Any] = parts._asdict()
    for (name, part), kind in zip(found.items(), KINDS, strict=True):
        if not isinstance(part, kind):
            got = f"{type(part).__module__}.{type(part).__qualname__}"
            raise UsageError(f"expected {name} to be an object of {kind.__module__}.{kind.__qualname__}, got {got}")
    for owner in (parts.guide, parts.model):
        for name, part in _parts_within(owner):
            if found.setdefault(name, part) is not part:
                raise UsageError(
                    f"expected guide and model with the same {name} object, got two objects; construct guide and model "
                    f"from one {name}"
                )
    _refuse_twice(found)
    return found


def _parts_within(owner: Recorded) -> list[tuple[str, Recorded]]:
    arguments = arguments_passed(owner).items()
    return [(name, part) for name, part in arguments if name in PARTS and isinstance(part, Recorded)]


def _refuse_twice(parts: Mapping[str, Recorded]) -> None:
    names: dict[int, str] = {}
    for name, part in parts.items():
        if (other := names.setdefault(id(part), name)) != name:
            raise UsageError(
                f"expected {other} and {name} to be two objects, got one {type(part).__name__} for both; construct two"
            )


def _shared_by(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that parts share. An argument must have the same value in all parts."""
    values: dict[str, Any] = {}
    for part, recorded in parts.items():
        for name in _shared_names(recorded):
            value = plain(arguments_passed(recorded)[name], f"{part}.{name}")
            if values.setdefault(name, value) != value:
                raise UsageError(
                    f"expected the same {name} in all parts, got {values[name]} and {part}.{name}={value}; construct "
                    "the parts with equal values"
                )
    if "input_shape" not in values:
        raise UsageError(
            "expected a backbone with input_shape, got a backbone that was constructed without; construct the backbone "
            "with input_shape"
        )
    return {"num_targets": 0} | _without_widths(values, parts)


def _shared_names(part: Recorded) -> list[str]:
    shared = {*CONTEXT, *provided_by_source(type(part))} - {*PARTS}
    return [name for name in arguments_passed(part) if name in shared]


def _without_widths(values: dict[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shared values, without num_features and num_weights if `build_parts` derives the same numbers.

    Raises:
        UsageError: num_features or num_weights does not fit backbone and head.
    """
    num_features = parts["backbone"].num_features
    expected = {"num_features": num_features}
    if num_features is not None and (head := parts.get("head")):
        expected["num_weights"] = head.num_weights(num_features)
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise UsageError(
                f"expected {name}={value} for this backbone and head, got {name}={values[name]}; construct all parts "
                f"with {name}={value}"
            )
    found = {"num_weights": num_features} | expected
    return {name: value for name, value in values.items() if found.get(name) != value}


def _settings_of(key: str, part: Recorded) -> dict[str, Any]:
    shared = _shared_names(part)
    settings = {
        name: plain(value, f"{key}.{name}")
        for name, value in arguments_passed(part).items()
        if name not in shared and not (name in PARTS and (value is None or isinstance(value, Recorded)))
    }
    return {"_target_": target_name(part, key), **settings}


class Rebuildable(Protocol):
    """Protocol of a learner that can be rebuilt from its specification (plain values)."""

    @property
    def specification(self) -> dict[str, Any]: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def refuse_other(self, weights: Mapping[str, Tensor]) -> None: ...


def refuse_what_cannot_be_rebuilt(
    learner: Rebuildable, rebuild: Callable[[Mapping[str, Any], Sequence[str]], Rebuildable]
) -> None:
    """Raise a UsageError if a learner rebuilt from the specification has parameters with other names or shapes.

    Args:
        learner: the learner.
        rebuild: function that builds a learner. The arguments are a mapping {specification, frozen} and the prefixes of
            names that may be imported.
    """
    try:
        specification = learner.specification
        parts = [part for name in PARTS if (part := specification.get(name))]
        modules = [part["_target_"].rpartition(".")[0] for part in parts]
        with noise_of(0), drawing():  # without torch's global random numbers
            copy = rebuild({"specification": specification, "frozen": True}, modules)
        copy.refuse_other(learner.state_dict())
    except UsageError as error:
        raise UsageError(
            f"load could not rebuild the learner: {error}; or save only the weights: save(path, weights_only=True), "
            "and load(path, into=learner)"
        ) from None
