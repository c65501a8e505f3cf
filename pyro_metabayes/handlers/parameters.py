"""Pyro messages for the parameters of models and guides; both are subclasses of `Program`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.ops.jit import CompiledFunction
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor, nn

from pyro_metabayes.errors import UsageError

# Set before any PyroModule exists: in Pyro's global store, two modules of the same name would share their parameters.
pyro.settings.set(module_local_params=True)

_messages_off: ContextVar[bool] = ContextVar("messages_off", default=False)


@contextmanager
def without_messages() -> Iterator[None]:
    """Context manager: a Program sends no Pyro message when a parameter is read.

    The messages take a third of the time of a small training step. The objectives of this package do not need them.
    """
    token = _messages_off.set(True)
    try:
        yield
    finally:
        _messages_off.reset(token)


class Program(PyroModule):
    """A PyroModule whose plain parameters send no Pyro message inside `without_messages`.

    PyroParam and PyroSample attributes always send messages.
    """

    def __getattr__(self, name: str) -> Any:
        if _messages_off.get() and not name.endswith("_unconstrained"):
            for table in ("_modules", "_parameters"):
                if name in (plain := self.__dict__.get(table, ())):
                    return plain[name]
        return super().__getattr__(name)


@contextmanager
def held_constant(module: nn.Module) -> Iterator[None]:
    """Context manager: compute no gradient with respect to the parameters of a module."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def announce_parameters(module: nn.Module, prefix: str) -> None:
    """Send a Pyro `param` message for every parameter of a module, so that pyro.infer.SVI trains the parameter.

    PyroModule alone sends no message for the parameters of a submodule such as nn.Linear. The function pyro.module
    sends all messages, but keeps the parameters in a global store that all learners share. Messages are sent only
    inside SVI's handler (param_only).

    Args:
        module: the model or the guide.
        prefix: prefix of the names of the param sites, "model" or "guide".

    Raises:
        UsageError: the loss is one of Pyro's Jit objectives.
    """
    if not any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
        return
    _refuse_jit()
    for name, value in module.named_parameters():
        if value.requires_grad:
            _announce(f"{prefix}.{name}", value)


def _refuse_jit() -> None:
    """Raise a UsageError if the program runs inside a Jit objective of Pyro."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:  # only the call stack shows that Pyro is compiling this program
        if frame.f_code is CompiledFunction.__call__.__code__:
            raise UsageError(
                "expected an objective that is not compiled, got one of Pyro's Jit objectives; use the class without "
                "Jit, such as Trace_ELBO"
            )
        frame = frame.f_back


def _announce(name: str, value: Tensor) -> None:
    value.unconstrained = lambda: value  # type: ignore[attr-defined]  # the attribute that SVI passes to its optimiser
    effectful(type="param")(lambda *_, **__: value)(name, name=name)
