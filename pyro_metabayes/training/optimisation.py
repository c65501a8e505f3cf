"""The optimiser of a training run, its rates and the weight of the KL, as functions of the step."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_metabayes.errors import UsageError
from pyro_metabayes.moved import current_name


@dataclass
class TrainSettings:
    """One meta-training run."""

    steps: int = 2000
    tasks_per_step: int = 16
    num_tasks: int = 0  # learn from the first so many tasks, again and again; 0: never the same twice
    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)  # of parameters by name or its beginning
    optimizer: str = "adam"  # adam, sgd
    momentum: float = 0.9  # sgd: Nesterov
    weight_decay: float = 0.0
    schedule: str = "cosine"  # cosine (to 0), constant
    clip: float = 0.0  # norm of the gradient; 0: none
    clip_value: float = 0.0  # every entry of the gradient, before the norms; 0: none
    clip_each: float = 0.0  # norm of the gradient of each parameter by itself; 0: none
    kl_weight: Any = 1.0  # a number, or {start: 1e-6, end: 1.0, steps: 1000}: linear warm-up
    particles: int = 1  # samples of w a task
    compile: bool = False  # torch.compile the networks
    on_nan: str = "stop"  # stop, skip: what a step with a loss or gradient that is not finite does
    log_every: int = 50  # steps
    validate_every: int = 500  # steps; the last step is validated too
    validation_tasks: int = 300

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"expected train.{name} to be one of {', '.join(choices)}, got '{value}'")
        rates = {f"learning_rates.{name}": rate for name, rate in self.learning_rates.items()}
        for name, value in {**vars(self), **rates}.items():
            _refuse_out_of_range(name, value)
        kl_weight_at(self.kl_weight, 0)


CAPTURABLE = ("cuda", "xpu")  # where torch's Adam can keep its count of steps on the device
CHOICES = {"optimizer": ("adam", "sgd"), "schedule": ("cosine", "constant"), "on_nan": ("stop", "skip")}
COUNTS = ("steps", "tasks_per_step", "particles", "log_every", "validate_every", "validation_tasks")
NOT_NEGATIVE = ("num_tasks", "momentum", "weight_decay", "clip", "clip_value", "clip_each")


def _refuse_out_of_range(name: str, value: Any) -> None:
    """Counts start at 1, rates are positive, what remains may be 0; all are finite."""
    if name in COUNTS and value < 1:
        raise UsageError(f"expected train.{name} >= 1, got {value}")
    if name in NOT_NEGATIVE and not 0 <= value < math.inf:
        raise UsageError(f"expected train.{name} >= 0 and finite, got {value}")
    if (name == "learning_rate" or name.startswith("learning_rates.")) and not 0 < value < math.inf:
        raise UsageError(f"expected train.{name} > 0 and finite, got {value}")


def kl_weight_at(weight: Any, step: int) -> float:
    """The KL weight of a step: a constant, or a linear warm-up that stays at its end."""
    schedule = dict(weight) if isinstance(weight, Mapping) else {"start": weight, "end": weight, "steps": 1}
    try:
        start, end, steps = (float(schedule.pop(name)) for name in ("start", "end", "steps"))
    except (KeyError, TypeError, ValueError):
        schedule = {"?": weight}
    if schedule or not 0 < min(start, end) < math.inf or steps < 1:
        raise UsageError(
            "expected train.kl_weight to be a number > 0, or {start: 1e-6, end: 1.0, steps: 1000} "
            f"(0 itself is no weight that Pyro takes), got {weight}"
        )
    return start + (end - start) * min(step / steps, 1.0)


def make_optimizer(learner: nn.Module, settings: TrainSettings) -> Optimizer:
    """One torch optimiser; a group for each entry of learning_rates and one for the rest, with their base rates."""
    trained = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UsageError("expected parameters to train, got a model and a guide without any; take another guide=")
    rates = {"": settings.learning_rate}
    rates |= {current_name(name, trained) or name: rate for name, rate in settings.learning_rates.items()}
    groups: dict[str, list[str]] = {}
    for name in trained:
        groups.setdefault(_rate_of(name, rates), []).append(name)
    _report_unused(rates.keys() - groups.keys() - {""}, learner)
    options: list[dict[str, Any]] = [
        {"params": [trained[name] for name in names], "lr": rates[key], "base": rates[key], "name": key}
        for key, names in groups.items()
    ]
    if settings.optimizer == "adam":
        device = next(iter(trained.values())).device
        counted_there = settings.on_nan == "skip" and device.type in CAPTURABLE  # a step that may be taken back
        return torch.optim.Adam(options, weight_decay=settings.weight_decay, capturable=counted_there)
    momentum = settings.momentum
    return torch.optim.SGD(
        options, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=settings.weight_decay
    )


def _rate_of(name: str, rates: Iterable[str]) -> str:
    """The longest entry of learning_rates that is the name of a parameter or its beginning; '' if none is."""
    return max((key for key in rates if name == key or name.startswith(f"{key}.")), key=len, default="")


def optimizer_state(optimizer: Optimizer, learner: nn.Module) -> dict[str, Any]:
    """The state of the optimiser with the names of its parameters, in the order of their numbers."""
    name_of = {parameter: name for name, parameter in learner.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {**optimizer.state_dict(), "names": names}


def restore_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], learner: nn.Module, weights: Iterable[str]
) -> None:
    """Moments from the state, rates and the like as they are set: those may change on a resume.

    weights: the names of the weights in the checkpoint; version 0.1 kept none beside the moments.
    """
    own = optimizer_state(optimizer, learner)
    place = {name: number for number, name in enumerate(own["names"])}
    names = [current_name(name, place) for name in state.get("names") or _names_of_groups(state, weights, place)]
    layouts = [_layout(one["param_groups"], one_names) for one, one_names in ((own, own["names"]), (state, names))]
    if layouts[0] != layouts[1]:
        raise UsageError(
            "expected train.optimizer, backbone.frozen and the names in train.learning_rates as in the "
            "interrupted run, got others; leave them, or start a new run"
        )
    moments = {place[names[number]]: value for number, value in state["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    for number, values in moments.items():
        shapes = {value.shape for name, value in values.items() if name != "step" and value is not None}
        if values.keys() - kinds or (values and kinds - values.keys()) or shapes - {parameters[number].shape}:
            raise ValueError(f"the moments of parameter {number} are those of another optimiser or shape")
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _names_of_groups(state: Mapping[str, Any], weights: Iterable[str], place: Mapping[str, int]) -> list[str]:
    """The names that version 0.1 did not keep: group by group in the order of the weights."""
    trained = [name for name in weights if current_name(name, place) in place]
    keys = [group["name"] for group in state["param_groups"]]
    return [name for key in keys for name in trained if _rate_of(name, keys) == key]


def _layout(groups: Sequence[Mapping[str, Any]], names: Sequence[str | None]) -> list[Any]:
    """What the moments of an optimiser belong to."""
    each = [(sorted(group), sorted(str(names[number]) for number in group["params"])) for group in groups]
    return sorted(each, key=str)


def _report_unused(names: set[str], learner: nn.Module) -> None:
    """A rate may wait for a setting that has its parameter (guide.posterior=delta has no scale), but not for none."""
    there = ", ".join(name for name, parameter in learner.named_parameters() if parameter.requires_grad)
    for name in sorted(names):
        if name.partition(".")[0] not in dict(learner.named_children()):
            raise UsageError(f"no parameter '{name}' for train.learning_rates; there are: {there}")
        print(f"note: no parameter '{name}' in this setting: its rate in train.learning_rates is idle", file=sys.stderr)


def clip_gradients(fabric: Fabric, learner: nn.Module, optimizer: Optimizer, settings: TrainSettings) -> None:
    """Bound entries, then each parameter's gradient, then all of it, where the settings ask for that."""
    for parameter in (each for each in learner.parameters() if each.grad is not None):
        if settings.clip_value:
            torch.nn.utils.clip_grad_value_(parameter, settings.clip_value)
        if settings.clip_each:
            torch.nn.utils.clip_grad_norm_(parameter, settings.clip_each, error_if_nonfinite=False)
    if settings.clip:
        fabric.clip_gradients(learner, optimizer, max_norm=settings.clip, error_if_nonfinite=False)


def step_unless(bad: Tensor, optimizer: Optimizer) -> None:
    """A step that leaves parameters and moments as they were where the flag `bad` is set.

    The flag is not read on the host, but where Adam counts its steps there (`CAPTURABLE`).
    """
    before = {place: value.detach().clone() for place, value in _state_of(optimizer).items()}
    optimizer.step()
    with torch.no_grad():
        for place, value in _state_of(optimizer).items():
            old = before.get(place, torch.zeros_like(value))  # moments start at 0
            value.copy_(torch.where(bad.to(value.device), old, value))


def _state_of(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """Every tensor that a step changes: of each parameter itself, its moments and its count of steps."""
    parameters = [its for group in optimizer.param_groups for its in group["params"]]
    named = [{"": its, **optimizer.state.get(its, {})} for its in parameters]
    return {(i, key): value for i, its in enumerate(named) for key, value in its.items() if isinstance(value, Tensor)}


def set_rates(optimizer: Optimizer, settings: TrainSettings, step: int) -> None:
    """Rates of a step; a closed form, so that nothing of a schedule needs to be saved."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    factor = cosine if settings.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def compile_networks(learner: nn.Module) -> None:
    """torch.compile, in place, the modules that say they are pure functions of tensors, as Pyro's handlers are not."""
    for module in learner.modules():
        if getattr(module, "pure", False):
            module.compile()
