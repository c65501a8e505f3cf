"""Parameters of plain nn.Modules, made known to those Pyro handlers that ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor, nn

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, the attributes of a Program send no messages: our objectives ask torch for the parameters.

    PyroModule sends one for every parameter below whatever attribute is read, which took a third of a small step.
    """
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class Program(PyroModule):
    """A PyroModule that can be read `quietly`. PyroParam and PyroSample attributes stay Pyro's at all times."""

    def __getattr__(self, name: str) -> Any:
        if _quiet.get() and not name.endswith("_unconstrained"):
            for table in ("_modules", "_parameters"):
                if name in (plain := self.__dict__.get(table, ())):
                    return plain[name]
        return super().__getattr__(name)


def announce_parameters(module: nn.Module, prefix: str) -> None:
    """Send a `param` message for every parameter, as pyro.module would.

    pyro.infer.SVI trains only what it sees as a param site, and a PyroModule announces its own
    parameters but not those of the nn.Linear inside it. pyro.module itself would put them into the
    global store, where two learners of one process share them. Only SVI's handler (param_only) and
    the traces under it need the messages: our own training asks torch for the parameters.
    """
    if not any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
        return
    for name, value in module.named_parameters():
        if value.requires_grad:
            _announce(f"{prefix}.{name}", value)


def _announce(name: str, value: Tensor) -> None:
    value.unconstrained = lambda: value  # type: ignore[attr-defined]  # what SVI hands to its optimiser
    effectful(type="param")(lambda *_, **__: value)(name, name=name)
