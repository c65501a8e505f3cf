"""The optimiser of TrainSettings, and its state in a checkpoint, in which moments have the names of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from pyro_metabayes.errors import UsageError
from pyro_metabayes.moved import current_name
from pyro_metabayes.training.optimisation import TrainSettings, make_optimizer, rate_of, set_rates


@runtime_checkable
class Optimisation(Protocol):
    """An optimiser with its learning-rate schedule; their states are saved in a checkpoint."""

    optimizer: Optimizer

    def start_step(self, step: int) -> None:
        """Called before step 0, 1, ..."""

    def end_step(self) -> None:
        """Called after every step."""

    def end_validation(self, nll: float) -> None:
        """Called after every validation, with its NLL."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        """Continue from a state; `weights` are the names of the weights in its checkpoint."""


class OptimisationBySettings:
    """The optimiser of TrainSettings. Its rates depend only on settings and step, so a resumed run may change them."""

    def __init__(self, learner: nn.Module, settings: TrainSettings) -> None:
        self.optimizer: Optimizer = make_optimizer(learner, settings)
        self._learner, self._settings = learner, settings

    def start_step(self, step: int) -> None:
        set_rates(self.optimizer, self._settings, step)

    def end_step(self) -> None:
        """Does nothing."""

    def end_validation(self, nll: float) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        return optimizer_state(self.optimizer, self._learner)

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        if "optimiser" in state:
            raise UsageError("expected the optimiser and scheduler of the interrupted training, got none; pass them")
        restore_optimizer(self.optimizer, state, self._learner, weights)


def optimizer_state(optimizer: Optimizer, learner: nn.Module) -> dict[str, Any]:
    """The state of the optimiser, and the names of its parameters in the order of their numbers in the state."""
    name_of = {parameter: name for name, parameter in learner.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {**optimizer.state_dict(), "names": names}


def restore_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], learner: nn.Module, weights: Iterable[str]
) -> None:
    """Load the moments of the state. Rates and other options are not loaded, since a resumed run may change them.

    Args:
        optimizer: the optimiser, whose state is replaced.
        state: the result of `optimizer_state`.
        learner: the learner whose parameters are trained.
        weights: names of the weights in the checkpoint; needed for version 0.1, which saved moments without names.

    Raises:
        UsageError: the optimiser has other parameter groups.
    """
    own = optimizer_state(optimizer, learner)
    number_of = {name: number for number, name in enumerate(own["names"])}
    saved_names = state.get("names") or _names_in_groups(state, weights, number_of)
    names = [current_name(name, number_of) for name in saved_names]
    if _layout(own["param_groups"], own["names"]) != _layout(state["param_groups"], names):
        raise UsageError(
            "expected train.optimizer, backbone.frozen and the names in train.learning_rates as in the "
            "interrupted run, got different ones; do not change them, or start a new run"
        )
    moments = {number_of[str(names[number])]: values for number, values in state["state"].items()}
    _check_moments(moments, optimizer)
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _check_moments(moments: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Raise a ValueError for moments of another kind of optimiser, or of parameters of another shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    for number, values in moments.items():
        shapes = {value.shape for name, value in values.items() if name != "step" and value is not None}
        if values.keys() - kinds or (values and kinds - values.keys()) or shapes - {parameters[number].shape}:
            raise ValueError(f"the moments of parameter {number} are those of another optimiser or shape")


def _names_in_groups(state: Mapping[str, Any], weights: Iterable[str], number_of: Mapping[str, int]) -> list[str]:
    """The names of parameters, which version 0.1 did not save: sorted by group, then in the order of the weights."""
    trainable = [name for name in weights if current_name(name, number_of) in number_of]
    keys = [group["name"] for group in state["param_groups"]]
    return [name for key in keys for name in trainable if rate_of(name, keys) == key]


def _layout(groups: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> list[Any]:
    """Option names and parameter names of each group, in an order that does not depend on the order of groups."""
    layout = [(sorted(group), sorted(str(names[number]) for number in group["params"])) for group in groups]
    return sorted(layout, key=str)
