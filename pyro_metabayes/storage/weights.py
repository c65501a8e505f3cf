"""Weights of a checkpoint: translation of names from earlier versions, and refusal of weights of another learner."""

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
    """Context manager in which new parts read no weights from files: the weights are loaded afterwards."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def do_weights_follow() -> bool:
    """Return whether parts are being built inside `weights_follow`: their weights are loaded afterwards."""
    return _follow.get()


def saved_learner(path: Path, rebuild: bool) -> Mapping[str, Any]:
    """Read a saved learner, a mapping with specification and weights (`Stored.portable`), from a file or a run folder.

    Args:
        path: the file, or the folder of a run. From a folder, the best learner is read.
        rebuild: whether the specification is needed.

    Raises:
        UsageError: the file has no learner, or no specification although `rebuild` is true.
    """
    state = checkpoint.load(checkpoint.file_of(path))
    saved = state.get("best", state.get("learner"))
    if not isinstance(saved, dict):
        raise UsageError(
            f"expected a checkpoint with a learner at {path}, got a checkpoint with the entries "
            f"{sorted(map(str, state))}; pass the folder of a run, or a file that MetaLearner.save wrote"
        )
    if rebuild and saved.get("specification", {}) is None:
        raise UsageError(
            f"expected a learner with its specification at {path}, got only weights; construct the learner and load "
            "the weights with MetaLearner.load(path, into=learner)"
        )
    return saved


def refuse_other_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a UsageError if the names or shapes of `weights` differ from those of the module."""
    own, weights = module.state_dict(), current_weights(module, weights)
    for name in sorted(own.keys() | weights.keys()):
        if difference := _difference(name, own, weights):
            raise UsageError(
                f"expected a checkpoint of this model and guide, got another: {difference}; build the learner with the "
                "settings that it was trained with"
            )


def _difference(name: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Describe how a weight in the checkpoint differs from the weight of the learner; '' if name and shape agree."""
    if name not in own:
        return f"the checkpoint has the weight {name}, the learner has not"
    if name not in weights:
        return f"the learner has the weight {name}, the checkpoint has not"
    got, expected = tuple(weights[name].shape), tuple(own[name].shape)
    return "" if got == expected else f"{name} has shape {got}, not {expected}"


def current_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with names from earlier versions translated to current names."""
    there = module.state_dict().keys()
    named = {current_name(name, there): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if name is not None}
