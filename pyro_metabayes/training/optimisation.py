"""Settings of a training run, its optimiser, and schedules of the learning rates and the KL weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.moved import current_name

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class TrainSettings:
    """Settings of one meta-training run."""

    steps: int = 2000  # number of steps of the optimiser; 0: the learner is evaluated untrained
    tasks_per_step: int = 16  # number of tasks per step
    num_tasks: int = 0  # train on the first num_tasks tasks repeatedly; 0: every task is new
    learning_rate: float = 1e-3  # learning rate of the first step
    learning_rates: dict[str, float] = field(default_factory=dict)  # rates by name or name prefix of parameters
    optimizer: str = "adam"  # the optimiser: adam, sgd
    momentum: float = 0.9  # Nesterov momentum of sgd
    weight_decay: float = 0.0  # L2 penalty: this factor times the parameters is added to the gradient
    schedule: str = "cosine"  # the learning rate over the steps: cosine (decreases to 0), constant
    clip: float = 0.0  # largest norm of the gradient; 0: no clipping
    clip_value: float = 0.0  # largest absolute entry of the gradient, clipped before the norms; 0: no clipping
    clip_each: float = 0.0  # largest norm of the gradient of each parameter; 0: no clipping
    kl_weight: Any = 1.0  # weight of the KL: a number, or {start: 1e-6, end: 1.0, steps: 1000}: linear warm-up
    particles: int = 1  # samples of the weights w per task
    compile: bool = False  # whether to compile the networks with torch.compile
    on_nan: str = "stop"  # reaction to a loss or gradient that is not finite: stop, skip
    log_every: int = 50  # steps between logged lines
    validate_every: int = 500  # steps between validations; the last step is always validated
    validation_tasks: int = 300  # number of tasks of a validation

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(f"train.{name}", getattr(self, name), choices)
        rates = {f"learning_rates.{name}": rate for name, rate in self.learning_rates.items()}
        for name, value in {**vars(self), **rates}.items():
            _refuse_out_of_range(name, value)
        kl_weight_at(self.kl_weight, 0)


CAPTURABLE = ("cuda", "xpu")  # devices on which torch's Adam can keep its step count
CHOICES = {"optimizer": ("adam", "sgd"), "schedule": ("cosine", "constant"), "on_nan": ("stop", "skip")}
COUNTS = ("tasks_per_step", "particles", "log_every", "validate_every", "validation_tasks")
NOT_NEGATIVE = ("steps", "num_tasks", "momentum", "weight_decay", "clip", "clip_value", "clip_each")


def _refuse_out_of_range(name: str, value: Any) -> None:
    """Raise a UsageError if a value is out of the range of the training setting `name`."""
    if name in COUNTS and value < 1:
        raise UsageError(f"expected train.{name} >= 1, got {value}")
    if name in NOT_NEGATIVE and not 0 <= value < math.inf:
        raise UsageError(f"expected train.{name} >= 0 and finite, got {value}")
    if (name == "learning_rate" or name.startswith("learning_rates.")) and not 0 < value < math.inf:
        raise UsageError(f"expected train.{name} > 0 and finite, got {value}")


def kl_weight_at(weight: Any, step: int) -> float:
    """Return the KL weight of a step.

    Args:
        weight: a constant, or {start, end, steps} for a linear warm-up over `steps` steps, with `end` from then on.
        step: number of the step, from 0.
    """
    schedule = dict(weight) if isinstance(weight, Mapping) else {"start": weight, "end": weight, "steps": 1}
    try:
        start, end, steps = (float(schedule.pop(name)) for name in ("start", "end", "steps"))
    except (KeyError, TypeError, ValueError):
        schedule = {"?": weight}
    if schedule or not 0 < min(start, end) < math.inf or steps < 1:
        expected = "a number > 0, or a warm-up such as {start: 1e-6, end: 1.0, steps: 1000}"
        remedy = "; for a loss without KL take a point estimate with prior=flat, else a small weight such as 1e-6"
        raise UsageError(f"expected train.kl_weight to be {expected}, got {weight}{remedy if weight == 0 else ''}")
    return start + (end - start) * min(step / steps, 1.0)


def make_optimizer(learner: nn.Module, settings: TrainSettings) -> Optimizer:
    """Construct the torch optimiser, with one parameter group per entry of learning_rates and one for the rest.

    Raises:
        UsageError: the learner has no parameters to train, or an entry of learning_rates names no module.
    """
    trainable = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UsageError(
            "expected a learner with parameters to train, got none in model and guide; use a guide with parameters"
        )
    rates = {"": settings.learning_rate} | _current_rates(settings, trainable)
    groups: dict[str, list[str]] = {}
    for name in trainable:
        groups.setdefault(rate_of(name, rates), []).append(name)
    _refuse_unknown(rates.keys() - groups.keys() - {""}, learner)
    options: list[dict[str, Any]] = [
        {"params": [trainable[name] for name in names], "lr": rates[key], "base": rates[key], "name": key}
        for key, names in groups.items()
    ]
    if settings.optimizer == "adam":
        # `step_unless` resets the step count on the device, so Adam must keep it there.
        capturable = settings.on_nan == "skip" and next(iter(trainable.values())).device.type in CAPTURABLE
        return torch.optim.Adam(options, weight_decay=settings.weight_decay, capturable=capturable)
    momentum = settings.momentum
    return torch.optim.SGD(
        options, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=settings.weight_decay
    )


def rate_of(name: str, keys: Iterable[str]) -> str:
    """Return the longest key of train.learning_rates that equals `name` or is a prefix of `name`, else ""."""
    return max((key for key in keys if name == key or name.startswith(f"{key}.")), key=len, default="")


def _refuse_unknown(names: set[str], learner: nn.Module) -> None:
    """Raise a UsageError unless each key of train.learning_rates starts with the name of a module of the learner."""
    available = ", ".join(name for name, parameter in learner.named_parameters() if parameter.requires_grad)
    for name in sorted(names):
        if name.partition(".")[0] not in dict(learner.named_children()):
            raise UsageError(
                f"expected names or name prefixes of parameters in train.learning_rates, got '{name}'; the parameters "
                f"are: {available}"
            )


def idle_rates(learner: nn.Module, settings: TrainSettings) -> list[str]:
    """Return the keys of train.learning_rates that match no trained parameter."""
    trainable = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    used = {rate_of(name, _current_rates(settings, trainable)) for name in trainable}
    return [name for name in settings.learning_rates if (current_name(name, trainable) or name) not in used]


def _current_rates(settings: TrainSettings, trainable: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return train.learning_rates with names from earlier versions translated to current names."""
    return {current_name(name, trainable) or name: rate for name, rate in settings.learning_rates.items()}


def clip_gradients(fabric: Fabric, learner: nn.Module, optimizer: Optimizer, settings: TrainSettings) -> None:
    """Clip the gradient by TrainSettings: first the entries, then the norm per parameter, then the total norm."""
    for parameter in (parameter for parameter in learner.parameters() if parameter.grad is not None):
        if settings.clip_value:
            torch.nn.utils.clip_grad_value_(parameter, settings.clip_value)
        if settings.clip_each:
            torch.nn.utils.clip_grad_norm_(parameter, settings.clip_each, error_if_nonfinite=False)
    if settings.clip:
        fabric.clip_gradients(learner, optimizer, max_norm=settings.clip, error_if_nonfinite=False)


def step_unless(nonfinite: Tensor, optimizer: Optimizer) -> None:
    """Take a step of the optimiser, and undo the step if `nonfinite` is true.

    Parameters, moments and step counts are restored on the device, without host synchronisation. An exception is Adam
    on devices other than CUDA and XPU: the step count is on the host, which must wait for `nonfinite`.

    Args:
        nonfinite: boolean tensor [], whether the loss or a gradient of this step is not finite.
        optimizer: the optimiser, whose parameters have gradients.
    """
    before = {key: value.detach().clone() for key, value in _state_of(optimizer).items()}
    optimizer.step()
    with torch.no_grad():
        for key, value in _state_of(optimizer).items():
            old = before.get(key, torch.zeros_like(value))  # moments start at 0
            value.copy_(torch.where(nonfinite.to(value.device), old, value))


def _state_of(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """Return all tensors that a step changes (parameters, moments, step counts) by (index of the parameter, name)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [{"": parameter, **optimizer.state.get(parameter, {})} for parameter in parameters]
    entries = [(i, key, value) for i, state in enumerate(states) for key, value in state.items()]
    return {(i, key): value for i, key, value in entries if isinstance(value, Tensor)}


def set_rates(optimizer: Optimizer, settings: TrainSettings, step: int) -> None:
    """Set the learning rates of a step, which depend only on settings and step."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    factor = cosine if settings.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def compile_networks(learner: nn.Module) -> None:
    """Compile in place the modules marked `pure`, i.e. functions of tensors without Pyro effects."""
    for module in learner.modules():
        if getattr(module, "pure", False):
            module.compile()
