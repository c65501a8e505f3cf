"""The moments of an optimiser in a checkpoint, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pyro_metabayes.errors import UsageError
from pyro_metabayes.moved import current_name
from pyro_metabayes.training.optimisation import rate_of


def optimizer_state(optimizer: Optimizer, learner: nn.Module) -> dict[str, Any]:
    """The state of the optimiser, with the names of its parameters in the order of their numbers."""
    name_of = {parameter: name for name, parameter in learner.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {**optimizer.state_dict(), "names": names}


def restore_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], learner: nn.Module, weights: Iterable[str]
) -> None:
    """Load the moments of the state; rates and other options come from the settings, which a resume may change.

    weights: the names of the weights in the checkpoint, for version 0.1, which kept none beside the moments.
    """
    own = optimizer_state(optimizer, learner)
    number_of = {name: number for number, name in enumerate(own["names"])}
    saved_names = state.get("names") or _names_in_groups(state, weights, number_of)
    names = [current_name(name, number_of) for name in saved_names]
    if _layout(own["param_groups"], own["names"]) != _layout(state["param_groups"], names):
        raise UsageError(
            "expected train.optimizer, backbone.frozen and the names in train.learning_rates as in the "
            "interrupted run, got others; leave them, or start a new run"
        )
    moments = {number_of[str(names[number])]: values for number, values in state["state"].items()}
    _check_moments(moments, optimizer)
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _check_moments(moments: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Refuse moments of another kind of optimiser, or of parameters of another shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    for number, values in moments.items():
        shapes = {value.shape for name, value in values.items() if name != "step" and value is not None}
        if values.keys() - kinds or (values and kinds - values.keys()) or shapes - {parameters[number].shape}:
            raise ValueError(f"the moments of parameter {number} are those of another optimiser or shape")


def _names_in_groups(state: Mapping[str, Any], weights: Iterable[str], number_of: Mapping[str, int]) -> list[str]:
    """The names that version 0.1 did not keep: group by group, in the order of the weights."""
    trainable = [name for name in weights if current_name(name, number_of) in number_of]
    keys = [group["name"] for group in state["param_groups"]]
    return [name for key in keys for name in trainable if rate_of(name, keys) == key]


def _layout(groups: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> list[Any]:
    """Which parameters have options of their own together, whatever their order."""
    layout = [(sorted(group), sorted(str(names[number]) for number in group["params"])) for group in groups]
    return sorted(layout, key=str)
