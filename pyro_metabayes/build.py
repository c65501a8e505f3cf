"""From a plain specification {_target_: dotted.name, argument: value} to an object.

The constructor's signature is the one declaration of a part's settings: names and types are checked
against it before anything is built. What a part needs of its surroundings (the model, the number of
classes) it asks for by the name of an argument.
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
SHORT = ("models.", "guides.")  # of the package, which settings and checkpoints name without its name
# Commands and tests, which no specification may call.
OUTSIDE = ("pyro_metabayes.experiments.", "pyro_metabayes.tests.", "pyro_metabayes.benchmarks.")

_FROM_SOURCE = "provided by the source of tasks"
# The annotation of a count that the source of tasks provides (its `context`) and no specification of a part may set.
FromSource = Annotated[int, _FROM_SOURCE]


def target_of(spec: Spec, part: str, prefixes: Sequence[str] = PREFIXES) -> Any:
    """The class or function that a specification names; only names under the prefixes are imported."""
    name = spec.get("_target_")
    if not isinstance(name, str) or not name.startswith(tuple(prefixes)) or full_name(name).startswith(OUTSIDE):
        allowed = ", ".join(prefixes)
        hint = "" if name else f"; does the YAML of {part} begin with '# @package _global_'?"
        raise UsageError(f"expected {part}._target_ to be a dotted name under {allowed}, got {name!r}{hint}")
    module, _, attribute = full_name(name).rpartition(".")
    given = name.rpartition(".")[0]
    try:
        target = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the file is there, something that it imports is not
        raise UsageError(f"no module '{given}', which {part}._target_ names") from None
    except AttributeError:
        raise UsageError(f"no '{attribute}' in {given}, which {part}._target_ names") from None
    except (ImportError, ValueError, TypeError) as error:  # a name like models..heads
        raise UsageError(f"no module '{given}', which {part}._target_ names: {error}") from None
    of_module = inspect.isclass(target) or inspect.isfunction(target)
    if not of_module or not target.__module__.startswith(tuple(map(_full, prefixes))):
        raise UsageError(f"expected a class or function of {given} itself as {part}._target_, got '{attribute}'")
    return target


def full_name(name: str) -> str:
    """The name of a target in this version: guides.sib.Guide is pyro_metabayes.guides.sib.Guide."""
    module, _, attribute = _full(name).rpartition(".")
    return f"{MODULES.get(module, module)}.{attribute}"


def _full(name: str) -> str:
    return f"pyro_metabayes.{name}" if name.startswith(SHORT) else name


def arguments_of(target: Any) -> dict[str, inspect.Parameter]:
    """Named arguments of a constructor or function."""
    gathering = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in gathering}


def _hints_of(target: Any) -> dict[str, Any]:
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def provided_by_source(target: Any) -> list[str]:
    """Names of the arguments that are annotated with FromSource."""
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return [name for name, hint in hints.items() if _FROM_SOURCE in getattr(hint, "__metadata__", ())]


def check(spec: Spec, part: str, context: Sequence[str], prefixes: Sequence[str] = PREFIXES) -> None:
    """Refuse a specification with an argument that its target does not take, or of another type.

    context: names that the surroundings provide and a specification may not set.
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
    """The checked object; of the context it gets what its constructor has an argument for."""
    check(spec, part, list(context), prefixes)
    spec = current_specification(spec)
    target = target_of(spec, part, prefixes)
    wanted = arguments_of(target)
    provided = {name: value for name, value in context.items() if name in wanted}
    hints = _hints_of(target)
    settings = {
        name: float(value) if hints.get(name) is float else value  # 0 for 0.0
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
    """Whether a plain value may stand for the annotation; annotations of other kinds are not judged."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:  # nan would surface as an error of some tensor, far from its cause
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if origin in (list, Sequence, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return not inspect.isclass(hint) or isinstance(value, hint)
