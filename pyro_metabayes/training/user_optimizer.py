"""An optimiser of the user, with a scheduler of its learning rates, both of torch."""

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
    """Any torch optimiser over parameters of the learner, and any scheduler of it.

    A checkpoint holds the states of both, the learning rates among them.

    Args:
        learner: whose parameters are trained; a note names those that the optimiser does not have.
        optimiser: over some of them.
        scheduler: of this optimiser; None: constant rates.
        steps: number of steps of the training.

    Raises:
        UsageError: an optimiser of other parameters, of frozen ones alone or with a closure; a scheduler of another
            optimiser, of fewer steps or of a score that has to rise; or a state that no checkpoint can hold.
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
                f"expected an optimiser and a scheduler whose state is plain values and tensors, got one where {error}"
            ) from None

    def start_step(self, step: int) -> None:
        """The scheduler has set the rates."""

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
        """The options of the groups of the optimiser and of the scheduler, by name, as they are now."""
        groups = self.optimizer.state_dict()["param_groups"]
        return _named_options(groups, {} if self.scheduler is None else self.scheduler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any], weights: Iterable[str]) -> None:
        """Continue from a state; refuses that of another kind of optimiser or scheduler."""
        if "optimiser" not in state or (state["scheduler"] is None) != (self.scheduler is None):
            raise UsageError("expected the optimiser and scheduler of the interrupted training, got others; pass those")
        _check_groups(state["optimiser"], self.optimizer)
        if self.scheduler is not None:
            _check_names(self.scheduler.state_dict(), state["scheduler"], "scheduler")
        self._refuse_other_options(state)
        self.optimizer.load_state_dict(dict(state["optimiser"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))

    def _refuse_other_options(self, state: Mapping[str, Any]) -> None:
        """Refuse options that are neither those of the start nor, after an interruption in this process, the last."""
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
    """Refuse a state of another kind of optimiser, or of parameters of other shapes."""
    own, saved = optimiser.state_dict()["param_groups"], state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise UsageError("expected the parameter groups of the interrupted training, got others; construct them alike")
    for one, other in zip(own, saved, strict=True):
        _check_names(one, other, "optimiser")


def _named_options(groups: Sequence[Mapping[str, Any]], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Values that compare: by the name of the option, with the number of its group where there are several."""
    options = {
        name if len(groups) == 1 else f"{name} of group {number}": _comparable(value)
        for number, group in enumerate(groups)
        for name, value in group.items()
    }
    return options | {f"scheduler.{name}": _comparable(value) for name, value in scheduler.items()}


def _comparable(value: Any) -> Any:
    """Tensors and sequences as lists, whose comparison is one truth value."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _comparable(item) for name, item in value.items()}
    return [_comparable(item) for item in value] if isinstance(value, list | tuple) else value


def _check_names(own: Mapping[str, Any], saved: Mapping[str, Any], what: str) -> None:
    if own.keys() != saved.keys():
        different = ", ".join(sorted(map(str, own.keys() ^ saved.keys())))
        raise UsageError(
            f"expected the {what} of the interrupted training, got another (they differ in: {different}); pass that"
        )
