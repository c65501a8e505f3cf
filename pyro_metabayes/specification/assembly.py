"""Assembly of a learner from parts (backbone, guide, ...) that are given as names, settings, classes or objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn

from pyro_metabayes.backbone import Backbone, TorchBackbone
from pyro_metabayes.build import PREFIXES, arguments_of, target_of
from pyro_metabayes.errors import UsageError, unknown_key
from pyro_metabayes.guide import Guide
from pyro_metabayes.model import Model
from pyro_metabayes.specification.parts import PARTS, Parts, build_parts
from pyro_metabayes.specification.recorded import Recorded, arguments_passed
from pyro_metabayes.validation.arguments import check_flags, check_integers

# Class names of parts that are given by a short name, here {name}. {cls} is the name in camel case, as in FullGaussian.
_PLACES = {
    "backbone": "models.backbones.{name}.Backbone",
    "head": "models.heads.{cls}",
    "prior": "models.priors.{cls}",
    "model": "models.{name}.Model",
    "guide": "guides.{name}.Guide",
    "objective": "pyro_metabayes.objectives.{name}.{cls}",
}

EXTRA = ("num_targets", "num_weights")  # shared values that `build` accepts in addition to its named arguments
NEEDED = ("backbone", "guide", "objective")  # parts without a default
OTHERS = {*PARTS, "num_features"}  # arguments of a part that are computed from other parts, not given by the user


def assembled_parts(parts: Mapping[str, Any], shared: Mapping[str, Any], normalise: bool = True) -> Parts:
    """Build the parts of a learner (backbone, model, guide, objective) from names, settings, classes or objects.

    Args:
        parts: {name of the part: value}. A value is a name, a class, an object, None, or a mapping of `_target_` (a
            name or a class) and settings. A name is short, such as `sib`, or a full dotted name. The backbone may be
            any torch module.
        shared: arguments that several parts share, such as num_classes; None values are ignored.
        normalise: whether features are scaled to unit length if the backbone is a plain torch module.

    Raises:
        UsageError: the parts do not fit together, or a value is missing.
    """
    shared = {name: value for name, value in shared.items() if value is not None}
    chosen = {part: _chosen(part, value) for part, value in parts.items()}
    chosen["backbone"] = _backbone(chosen["backbone"], shared, normalise)
    if isinstance(chosen["guide"], Guide) and chosen["model"] is None:
        chosen["model"] = chosen["guide"].model
    if chosen["model"] is None:
        chosen["model"] = _chosen("model", "few_shot_classifier")
    if isinstance(chosen["model"], Model):
        chosen |= _within(chosen["model"])
    else:
        _refuse_missing(chosen)
    _refuse_unknown(shared, chosen)
    return build_parts({**shared, **chosen}, _prefixes(chosen))


def _chosen(part: str, value: Any) -> Any:
    """Convert a name or a class to a mapping with `_target_`; return any other valid value unchanged."""
    if isinstance(value, str):
        cls = "".join(word.capitalize() for word in value.split("_"))
        return {"_target_": value if "." in value else _PLACES[part].format(name=value, cls=cls)}
    if isinstance(value, type):
        return {"_target_": value}
    kinds = Mapping | Recorded | nn.Module if part == "backbone" else Mapping | Recorded
    if isinstance(value, kinds) or (value is None and part not in NEEDED):
        return value
    raise UsageError(
        f"expected {part} to be a name, a class, a mapping with _target_, or an object of such a class, got "
        f"{type(value).__name__}; see help(MetaLearner.build)"
    )


def _backbone(value: Any, shared: dict[str, Any], normalise: bool) -> Any:
    """Return the backbone; a plain torch module is wrapped as a TorchBackbone.

    The input_shape of the backbone is added to the values `shared` by all parts.
    """
    if isinstance(value, Backbone):
        shared.setdefault("input_shape", arguments_passed(value).get("input_shape"))
        return value
    if "input_shape" not in shared:
        raise UsageError(
            "expected the argument input_shape, got none; pass the shape of one input of the backbone, for example "
            "input_shape=[3, 84, 84]"
        )
    shared["input_shape"] = _sizes(shared["input_shape"])
    return TorchBackbone(value, shared["input_shape"], normalise) if isinstance(value, nn.Module) else value


def _sizes(shape: Any) -> list[int]:
    if not isinstance(shape, list | tuple) or not all(
        size is None or (type(size) is int and size > 0) for size in shape
    ):
        raise UsageError(
            f"expected input_shape to be a list of integers >= 1 (or None for any size), such as [3, 84, 84], got "
            f"{shape!r}"
        )
    return list(shape)


def _within(model: Model) -> dict[str, Any]:
    """Return the head and the prior with which a model was constructed; None for a missing one."""
    arguments = arguments_passed(model)
    parts = {name: arguments.get(name) for name in ("head", "prior")}
    return {name: part if isinstance(part, Recorded) else None for name, part in parts.items()}


def _refuse_missing(chosen: Mapping[str, Any]) -> None:
    """Raise a UsageError if the constructor of the model requires a prior or a head that is not given."""
    target = target_of(chosen["model"], "model", _prefixes(chosen))
    for name in ("prior", "head"):
        parameter = arguments_of(target).get(name)
        if parameter is not None and parameter.default is parameter.empty and chosen[name] is None:
            raise UsageError(f"expected a {name} for {target.__module__}, got none; pass {name}=NAME")


def _refuse_unknown(shared: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Raise a UsageError if a name in `shared` is unknown.

    Known names are the arguments of `build`, and of the constructors of parts that are not built yet.
    """
    named = [(part, value) for part, value in chosen.items() if isinstance(value, Mapping)]
    asked = {name for part, value in named for name in arguments_of(target_of(value, part, _prefixes(chosen)))}
    known = {*arguments_of(Assembled.build), *EXTRA} - {"shared"}
    for name in shared:
        if name not in (asked | known) - OTHERS:
            raise unknown_key(name, sorted(known), "MetaLearner.build")


def _prefixes(chosen: Mapping[str, Any]) -> Sequence[str]:
    """Return the prefixes of names that may be imported.

    The prefixes are the default ones, and the packages of the classes that the user named.
    """
    named = [value["_target_"] for value in chosen.values() if isinstance(value, Mapping)]
    return tuple(dict.fromkeys((*PREFIXES, *(f"{name.partition('.')[0]}." for name in named if isinstance(name, str)))))


class Assembled:
    """Base class of a learner with the constructor `build`, which takes names, settings, classes or objects."""

    @classmethod
    def of_parts(cls, parts: Parts, frozen: bool) -> Self:
        """Construct a learner from parts. `frozen`: whether the backbone is not trained."""
        raise NotImplementedError

    @classmethod
    def build(
        cls,
        backbone: Any,
        guide: Any,
        *,
        objective: Any,
        prior: Any = None,
        model: Any = None,
        head: Any = "cosine",
        input_shape: Sequence[int | None] | None = None,
        num_classes: int = 5,
        particles: int = 1,
        frozen: bool = False,
        normalise: bool = True,
        **shared: Any,
    ) -> Self:
        """Build a learner from parts. A part is a name, a mapping of `_target_` and settings, a class or an object.

            MetaLearner.build(network, "savi", prior="conditional", objective="elbo", input_shape=[3, 32, 32])

        Args:
            backbone: a part, or a torch module that maps N inputs [N, *X] of shape *X to features [N, D].
            guide: the guide.
            objective: the objective.
            prior: the prior; None for models that need none.
            model: the model. None: the model of the guide if the guide is an object, else few_shot_classifier.
            head: the head of a classifier.
            input_shape: *X, the shape of one input; not needed if the backbone is an object of the class Backbone.
            num_classes: number of classes per task; may be 0 in a regression.
            particles: number of samples of the weights w per task in the loss.
            frozen: whether the backbone is not trained. Tasks then hold features as inputs.
            normalise: whether features are scaled to unit length if the backbone is a plain torch module.
            shared: further arguments, such as num_targets of a regression. An argument is passed to each constructor
                of a part that has an argument of this name.

        Raises:
            UsageError: an argument is unknown or has another type, or the parts do not fit together.
        """
        check_flags(frozen=frozen, normalise=normalise)
        check_integers(0 if shared.get("num_targets") else 1, num_classes=num_classes)  # 0: labels are numbers
        check_integers(1, particles=particles)
        chosen = {"backbone": backbone, "guide": guide, "objective": objective, "prior": prior}
        chosen |= {"model": model, "head": head}
        shared |= {"input_shape": input_shape, "num_classes": num_classes, "particles": particles}
        return cls.of_parts(assembled_parts(chosen, shared, normalise), frozen)
