"""Weights of a checkpoint: names of earlier versions are translated, and weights of another learner are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_metabayes.errors import UsageError
from pyro_metabayes.moved import current_name
from pyro_metabayes.storage import checkpoint

_follow = ContextVar("weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Context manager: parts are built whose weights are loaded later, so that they read no other file of weights."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def do_weights_follow() -> bool:
    """Whether the weights of a part that is being built are loaded later."""
    return _follow.get()


def saved_learner(path: Path, rebuild: bool) -> Mapping[str, Any]:
    """The learner {specification, frozen, weights} in a file or in the folder of a run (its best learner).

    Args:
        path: the file or folder.
        rebuild: whether the specification is needed.

    Raises:
        UsageError: there is no learner, or its specification is needed and was not saved.
    """
    state = checkpoint.load(checkpoint.file_of(path))
    saved = state.get("best", state.get("learner"))
    if not isinstance(saved, dict):
        raise UsageError(f"expected a checkpoint with a learner at {path}, got one with {sorted(map(str, state))}")
    if rebuild and saved.get("specification", {}) is None:
        raise UsageError(
            f"expected a learner with its specification at {path}, got only weights; construct the learner and load "
            "them with MetaLearner.load(path, into=learner)"
        )
    return saved


def refuse_other_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a UsageError if names or shapes differ from the weights of the module."""
    own, weights = module.state_dict(), current_weights(module, weights)
    for name in sorted(own.keys() | weights.keys()):
        if difference := _difference(name, own, weights):
            raise UsageError(
                f"expected a checkpoint of this model and guide, got another: {difference}; build the learner with the "
                "settings that it was trained with"
            )


def _difference(name: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """A description of how a weight of the checkpoint differs from that of the learner; '' if it does not."""
    if name not in own:
        return f"the checkpoint has {name}, the learner has not"
    if name not in weights:
        return f"the learner has {name}, the checkpoint has not"
    got, expected = tuple(weights[name].shape), tuple(own[name].shape)
    return "" if got == expected else f"{name} is {got}, not {expected}"


def current_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with names of earlier versions translated to current names."""
    there = module.state_dict().keys()
    named = {current_name(name, there): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if name is not None}
