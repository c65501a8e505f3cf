"""Pyro messages for the parameters of models and guides, which are derived from `Program`."""

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
    """Suppress the Pyro messages that a Program sends when one of its parameters is read, in a with block.

    PyroModule sends one message for every parameter that is read, which takes a third of the time of a small training
    step. The objectives of this package do not need these messages.
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
    """Treat the parameters of a module as constants in a with block: no gradient with respect to them is computed."""
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

    SVI trains the parameters that are param sites. A PyroModule sends the messages of parameters that belong to the
    PyroModule itself, but not of parameters of an nn.Linear inside. The function pyro.module would send them too, but
    would keep the parameters in Pyro's global store, which all learners of a process share. Messages are sent only
    inside SVI's handler (param_only), since the training loop of this package reads the parameters from torch.

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
    """Raise a UsageError if the program runs inside a Jit objective of Pyro, which cannot compile it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:  # only the call stack shows that Pyro is compiling this program
        if frame.f_code is CompiledFunction.__call__.__code__:
            raise UsageError(
                "expected an objective that is not compiled, got one of Pyro's Jit objectives, which need parameters "
                "in Pyro's global store and tensors as data; use the class without Jit, such as Trace_ELBO"
            )
        frame = frame.f_back


def _announce(name: str, value: Tensor) -> None:
    value.unconstrained = lambda: value  # type: ignore[attr-defined]  # the attribute that SVI passes to its optimiser
    effectful(type="param")(lambda *_, **__: value)(name, name=name)
