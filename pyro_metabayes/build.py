"""Builds objects from plain specifications {_target_: dotted.name, argument: value}.

The settings of a part are the arguments of its constructor. Names and types are checked against the signature before
anything is built. Arguments such as `model` and `num_classes` come from the caller and are called the context.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pyro_metabayes.errors import UsageError, unknown_key
from pyro_metabayes.moved import MODULES, current_specification

Spec = Mapping[str, Any]
PREFIXES = ("models.", "guides.", "pyro_metabayes.")
SHORT = ("models.", "guides.")  # written in settings and checkpoints without the name of the package
# Commands, tests and benchmarks, which a specification must not call.
OUTSIDE = ("pyro_metabayes.experiments.", "pyro_metabayes.tests.", "pyro_metabayes.benchmarks.")

_FROM_SOURCE = "provided by the source of tasks"
# Annotation of a constructor argument, a count, whose value is in the `context` of the source of tasks. The
# specification of a part must not set this argument.
FromSource = Annotated[int, _FROM_SOURCE]


def target_of(spec: Spec, part: str, prefixes: Sequence[str] = PREFIXES) -> Any:
    """Import and return the class or function that `_target_` of a specification names.

    Args:
        spec: a specification. In Python, `_target_` may also be the class itself.
        part: name of the specified part in messages, such as "guide".
        prefixes: allowed prefixes of the dotted name.

    Raises:
        UsageError: `_target_` is missing, has another prefix, names a command, test or benchmark, or names no existing
            class or function.
    """
    name = spec.get("_target_")
    if inspect.isclass(name):
        return name
    if not isinstance(name, str) or not name.startswith(tuple(prefixes)) or full_name(name).startswith(OUTSIDE):
        allowed = ", ".join(prefixes)
        hint = "" if name else f"; check that the YAML of {part} begins with '# @package _global_'"
        raise UsageError(f"expected {part}._target_ to be a dotted name under {allowed}, got {name!r}{hint}")
    module, _, attribute = full_name(name).rpartition(".")
    given = name.rpartition(".")[0]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise UsageError(f"expected {part}._target_ in an existing module, found no '{given}'; fix the name") from None
    if not hasattr(found, attribute):
        raise UsageError(
            f"expected {part}._target_ to name an existing class, found no '{attribute}' in {given}; fix the name"
        )
    target = getattr(found, attribute)
    of_module = inspect.isclass(target) or inspect.isfunction(target)
    if not of_module or not f"{target.__module__}.".startswith(tuple(map(_full, prefixes))):
        raise UsageError(
            f"expected {part}._target_ to name a class or function defined in {given}, got '{attribute}'; fix the name"
        )
    return target


def full_name(name: str) -> str:
    """Return the current full dotted name of a class or function, given a short name or a name of earlier versions.

    For example, guides.sib.Guide becomes pyro_metabayes.guides.sib.Guide.
    """
    module, _, attribute = _full(name).rpartition(".")
    return f"{MODULES.get(module, module)}.{attribute}"


def _full(name: str) -> str:
    return f"pyro_metabayes.{name}" if name.startswith(SHORT) else name


def arguments_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor or function by name, without *args and **kwargs."""
    gathering = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in gathering}


def _hints_of(target: Any) -> dict[str, Any]:
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def provided_by_source(target: Any) -> list[str]:
    """Return the names of the arguments annotated with FromSource. The source of tasks provides their values."""
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return [name for name, hint in hints.items() if _FROM_SOURCE in getattr(hint, "__metadata__", ())]


def check(spec: Spec, part: str, context: Sequence[str], prefixes: Sequence[str] = PREFIXES) -> None:
    """Check the names and types of the arguments in a specification.

    Args:
        spec: a specification.
        part: name of the specified part in messages, such as "guide".
        context: names of the arguments that the caller provides. The specification must not set them.
        prefixes: allowed prefixes of the dotted name `_target_`.

    Raises:
        UsageError: `target_of` refuses `_target_`; a name in the specification is not an argument of the target, or is
            in the context; or a value has another type than the argument.
    """
    spec = current_specification(spec)
    target = target_of(spec, part, prefixes)
    hints = _hints_of(target)
    provided = {*context, *provided_by_source(target)}
    settings = [name for name in arguments_of(target) if name not in provided]
    for name, value in spec.items():
        if name == "_target_":
            continue
        if name not in settings:
            raise unknown_key(f"{part}.{name}", settings, spec["_target_"])
        if name in hints and not _fits(value, hints[name]):
            named = getattr(hints[name], "__name__", str(hints[name]))
            expected = "finite float" if hints[name] is float else named
            raise UsageError(f"expected {part}.{name} to be of type {expected}, got {value!r} ({type(value).__name__})")


def build(spec: Spec, part: str, prefixes: Sequence[str] = PREFIXES, **context: Any) -> Any:
    """Check a specification and build the object that it describes.

    Args:
        spec: a specification.
        part: name of the specified part in messages, such as "guide".
        prefixes: allowed prefixes of the dotted name `_target_`.
        context: values from the caller, by name. A value is used if the constructor has an argument of this name.

    Raises:
        UsageError: the specification does not pass `check`, or a required setting is missing.
    """
    check(spec, part, list(context), prefixes)
    spec = current_specification(spec)
    target = target_of(spec, part, prefixes)
    wanted = arguments_of(target)
    provided = {name: value for name, value in context.items() if name in wanted}
    hints = _hints_of(target)
    settings = {
        name: float(value) if hints.get(name) is float else value  # accepts the integer 0 for 0.0
        for name, value in spec.items()
        if name != "_target_"
    }
    missing = [
        name
        for name, parameter in wanted.items()
        if parameter.default is parameter.empty and name not in provided and name not in settings
    ]
    if missing:
        raise UsageError(f"expected a value for {part}.{missing[0]}, got none; set {part}.{missing[0]}=...")
    return target(**provided, **settings)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value has the type of an annotation. An annotation that is not checked fits any value."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:  # NaN or infinity would cause an unrelated error later
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if origin in (list, Sequence, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return not inspect.isclass(hint) or isinstance(value, hint)
