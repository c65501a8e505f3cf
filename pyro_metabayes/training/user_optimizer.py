"""Training with a torch optimiser and a torch learning-rate scheduler of the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.untrusted import check_plain
from pyro_metabayes.validation.optimisers import check_optimiser, check_scheduler, note_missing_parameters


class OptimisationByUser:
    """A torch optimiser over parameters of the learner, and a torch scheduler of this optimiser.

    Checkpoints store the states of optimiser and scheduler, including the learning rates.

    Args:
        learner: the learner. A note is printed if the optimiser lacks some of the trained parameters.
        optimiser: optimiser of some or all parameters of the learner.
        scheduler: scheduler of this optimiser; None: constant learning rates.
        steps: number of steps of the training.

    Raises:
        UsageError: for one of these reasons:
            the optimiser has parameters of another module, has only frozen parameters, or needs a closure;
            the scheduler has another optimiser, ends before the training, or maximises the NLL;
            the state of optimiser or scheduler cannot be saved.
    """

    def __init__(self, learner: nn.Module, optimiser: Optimizer, scheduler: LRScheduler | None, steps: int) -> None:
        check_optimiser(optimiser, learner)
        check_scheduler(scheduler, optimiser, steps)
        note_missing_parameters(optimiser, learner)
        self.optimizer, self.scheduler = optimiser, scheduler
        self._constructed = self._options()
        try:
            check_plain(self.state_dict())
        except ValueError as error:
            raise UsageError(
                "expected an optimiser and a scheduler with a state of numbers, text, tensors, and lists or dicts of "
                f"these, got a state that cannot be saved: {error}"
            ) from None

    def start_step(self, step: int) -> None:
        """Do nothing, since the scheduler has already set the learning rates."""

    def end_step(self) -> None:
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def end_validation(self, nll: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(nll)

    def state_dict(self) -> dict[str, Any]:
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimiser": self.optimizer.state_dict(), "scheduler": scheduler, "constructed": self._constructed}

    def _options(self) -> dict[str, Any]:
        """Return the current options of optimiser and scheduler by name."""
        groups = self.optimizer.state_dict()["param_groups"]
        return _named_options(groups, {} if self.scheduler is None else self.scheduler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        """Restore a state from a checkpoint. The state of another optimiser or scheduler raises a UsageError."""
        if "optimiser" not in state or (state["scheduler"] is None) != (self.scheduler is None):
            raise UsageError(
                "expected the optimiser and scheduler of the interrupted training, got a different optimiser or "
                "scheduler; pass the same as before"
            )
        _check_groups(state["optimiser"], self.optimizer)
        if self.scheduler is not None:
            _check_names(self.scheduler.state_dict(), state["scheduler"], "scheduler")
        self._refuse_other_options(state)
        self.optimizer.load_state_dict(dict(state["optimiser"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))

    def _refuse_other_options(self, state: Mapping[str, Any]) -> None:
        """Raise a UsageError if optimiser or scheduler have other options than in the interrupted training.

        Options of the start of the interrupted training and options of the last checkpoint are both accepted.
        """
        if (constructed := state.get("constructed")) is None:  # a checkpoint of an earlier version
            return
        own, last = self._options(), _named_options(state["optimiser"]["param_groups"], state["scheduler"] or {})
        different = [name for name in constructed if name not in own or own[name] != constructed[name]]
        if different and own != last:
            name = different[0]
            raise UsageError(
                f"expected the optimiser and scheduler of the interrupted training, with {name}={constructed[name]}, "
                f"got {name}={own.get(name)}; construct them as before, or pass another folder"
            )
        self._constructed = dict(constructed)


def _check_groups(state: Mapping[str, Any], optimiser: Optimizer) -> None:
    """Raise a UsageError if a saved state has other parameter groups or options than the optimiser."""
    own, saved = optimiser.state_dict()["param_groups"], state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise UsageError(
            "expected an optimiser with the parameter groups of the interrupted training, got other groups; construct "
            "the optimiser as before"
        )
    for one, other in zip(own, saved, strict=True):
        _check_names(one, other, "optimiser")


def _named_options(groups: Sequence[Mapping[str, Any]], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of optimiser and scheduler by name, with values that `==` can compare.

    With several parameter groups, the names contain the number of the group.
    """
    options = {
        name if len(groups) == 1 else f"{name} of group {number}": _comparable(value)
        for number, group in enumerate(groups)
        for name, value in group.items()
    }
    return options | {f"scheduler.{name}": _comparable(value) for name, value in scheduler.items()}


def _comparable(value: Any) -> Any:
    """Convert tensors and sequences in a value to lists. The operator `==` then gives a single truth value."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _comparable(item) for name, item in value.items()}
    return [_comparable(item) for item in value] if isinstance(value, list | tuple) else value


def _check_names(own: Mapping[str, Any], saved: Mapping[str, Any], what: str) -> None:
    if own.keys() != saved.keys():
        different = ", ".join(sorted(map(str, own.keys() ^ saved.keys())))
        raise UsageError(
            f"expected the {what} of the interrupted training, got a {what} with other options (only one of them has "
            f"{different}); construct the {what} as before"
        )
