"""Checks of an optimiser and a learning-rate scheduler that the user passes."""

from __future__ import annotations

import inspect
import sys

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_metabayes.errors import UsageError

SHOWN = 3  # largest number of names in a note


def check_optimiser(optimiser: Optimizer, learner: nn.Module) -> None:
    """Raise a UsageError for an optimiser that cannot train this learner.

    The optimiser must have only parameters of the learner, at least one trained parameter, and a `step` without
    closure.
    """
    if not isinstance(optimiser, Optimizer):
        raise UsageError(
            f"expected optimiser to be a torch.optim.Optimizer, got {_name_of(optimiser)}; pass for example "
            "torch.optim.AdamW(learner.parameters(), lr=1e-3)"
        )
    own = {id(parameter) for parameter in learner.parameters()}
    others = [value for group in optimiser.param_groups for value in group["params"] if id(value) not in own]
    if others:
        raise UsageError(
            f"expected an optimiser of parameters of this learner, got an optimiser with {len(others)} parameters of "
            "another module; construct the optimiser from learner.parameters()"
        )
    if not any(value.requires_grad for group in optimiser.param_groups for value in group["params"]):
        raise UsageError(
            "expected an optimiser of trained parameters, got only parameters of a frozen backbone; construct the "
            "optimiser from learner.parameters(), or build the learner with frozen=False"
        )
    closure = inspect.signature(type(optimiser).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"expected an optimiser whose step needs no closure, got {type(optimiser).__name__}; use for example Adam"
        )


def check_scheduler(scheduler: LRScheduler | None, optimiser: Optimizer, steps: int) -> None:
    """Raise a UsageError for a scheduler that does not fit the optimiser and the training.

    The scheduler must belong to this optimiser, last for all steps of the training, and not maximise the NLL.
    """
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        raise UsageError(
            f"expected scheduler to be an object of torch.optim.lr_scheduler, got {_name_of(scheduler)}; pass for "
            "example CosineAnnealingLR(optimiser, steps)"
        )
    if getattr(scheduler, "optimizer", optimiser) is not optimiser:
        raise UsageError(
            "expected a scheduler of this optimiser, got a scheduler of another optimiser; construct the scheduler "
            "from the optimiser that you pass"
        )
    _check_length(scheduler, steps)


def _check_length(scheduler: LRScheduler, steps: int) -> None:
    """Raise a UsageError if the scheduler has fewer steps than the training, or would maximise the NLL."""
    length = getattr(scheduler, "total_steps", None)
    if isinstance(length, int) and length < steps:
        raise UsageError(
            f"expected a scheduler of at least {steps} steps, like the training, got "
            f"{type(scheduler).__name__} with total_steps={length}; pass total_steps={steps}"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != "min":
        raise UsageError('expected ReduceLROnPlateau with mode="min" for the NLL, got mode="max"; remove mode=')


def note_missing_parameters(optimiser: Optimizer, learner: nn.Module) -> None:
    """Print a note with the names of trained parameters that the optimiser does not have."""
    there = {id(value) for group in optimiser.param_groups for value in group["params"]}
    missing = [name for name, value in learner.named_parameters() if value.requires_grad and id(value) not in there]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        print(
            f"note: the optimiser lacks the parameters {', '.join(missing[:SHOWN])}{more}, so they are not trained; "
            "learner.parameters() has all parameters",
            file=sys.stderr,
        )


def _name_of(value: object) -> str:
    """Return "the class NAME" for a class, and the name of the class for an object."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
