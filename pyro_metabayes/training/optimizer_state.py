"""The optimiser of a training run, and the state of the optimiser in a checkpoint, by names of parameters."""

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
    """Protocol of an optimiser with a learning-rate schedule. Checkpoints store the states of both."""

    optimizer: Optimizer

    def start_step(self, step: int) -> None:
        """Prepare step number `step`, from 0. The training loop calls this before every step."""

    def end_step(self) -> None:
        """Update the schedule. The training loop calls this after every step."""

    def end_validation(self, nll: float) -> None:
        """Update the schedule after a validation, given the NLL in nats per query."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        """Restore the state from a checkpoint. `weights` are the names of the weights in the checkpoint."""


class OptimisationBySettings:
    """The optimiser and learning-rate schedule that TrainSettings describes.

    A resumed run may change the learning rates, since they depend only on settings and step.

    Args:
        learner: the learner to train.
        settings: training settings.
    """

    def __init__(self, learner: nn.Module, settings: TrainSettings) -> None:
        self.optimizer: Optimizer = make_optimizer(learner, settings)
        self._learner, self._settings = learner, settings

    def start_step(self, step: int) -> None:
        set_rates(self.optimizer, self._settings, step)

    def end_step(self) -> None:
        """Do nothing, since `start_step` sets the learning rates."""

    def end_validation(self, nll: float) -> None:
        """Do nothing, since the learning rates do not depend on validations."""

    def state_dict(self) -> dict[str, Any]:
        return optimizer_state(self.optimizer, self._learner)

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        if "optimiser" in state:
            raise UsageError("expected the optimiser and scheduler of the interrupted training, got none; pass both")
        restore_optimizer(self.optimizer, state, self._learner, weights)


def optimizer_state(optimizer: Optimizer, learner: nn.Module) -> dict[str, Any]:
    """Return the `state_dict` of the optimiser, with an additional entry "names".

    The optimiser numbers parameters 0, 1, ... Entry i of "names" is the name of parameter i.
    """
    name_of = {parameter: name for name, parameter in learner.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {**optimizer.state_dict(), "names": names}


def restore_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], learner: nn.Module, weights: Iterable[str]
) -> None:
    """Restore the moments of an optimiser. Learning rates and other options are not changed.

    Args:
        optimizer: the optimiser, whose moments are replaced.
        state: the result of `optimizer_state` in a checkpoint.
        learner: the learner whose parameters are trained.
        weights: names of the weights in the checkpoint. They are needed for version 0.1, which saved no names.

    Raises:
        UsageError: the parameter groups are not those of the saved optimiser.
        ValueError: the moments are those of another kind of optimiser, or of parameters of other shapes.
    """
    own = optimizer_state(optimizer, learner)
    number_of = {name: number for number, name in enumerate(own["names"])}
    saved_names = state.get("names") or _names_in_groups(state, weights, number_of)
    names = [current_name(name, number_of) for name in saved_names]
    if _layout(own["param_groups"], own["names"]) != _layout(state["param_groups"], names):
        raise UsageError(
            "expected train.optimizer, backbone.frozen and the names in train.learning_rates as in the interrupted "
            "run, got other values; set these three settings as before, or start a new run"
        )
    moments = {number_of[str(names[number])]: values for number, values in state["state"].items()}
    _check_moments(moments, optimizer)
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _check_moments(moments: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Raise a ValueError if moments belong to another kind of optimiser, or to parameters of other shapes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    for number, values in moments.items():
        shapes = {value.shape for name, value in values.items() if name != "step" and value is not None}
        if values.keys() - kinds or (values and kinds - values.keys()) or shapes - {parameters[number].shape}:
            raise ValueError(f"the moments of parameter {number} are those of another optimiser or shape")


def _names_in_groups(state: Mapping[str, Any], weights: Iterable[str], number_of: Mapping[str, int]) -> list[str]:
    """Return the parameter names for a checkpoint of version 0.1: by group, then in the order of the weights."""
    trainable = [name for name in weights if current_name(name, number_of) in number_of]
    keys = [group["name"] for group in state["param_groups"]]
    return [name for key in keys for name in trainable if rate_of(name, keys) == key]


def _layout(groups: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> list[Any]:
    """Return the sorted names of options and parameters of each group, to compare two optimisers."""
    layout = [(sorted(group), sorted(str(names[number]) for number in group["params"])) for group in groups]
    return sorted(layout, key=str)
