"""Detection of the first non-finite quantity of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_metabayes.errors import UsageError

REMEDY = "lower the learning rate (train.learning_rate) or clip the gradient (train.clip)"
SHOWN = 3  # largest number of quantities that a message names


class NonFiniteMonitor:
    """Record of the first non-finite loss terms, gradients or parameters of a training, and of the step.

    Within a step, loss terms come first, then gradients, then parameters. The first of these that is not finite is the
    cause. Only `check` synchronises with the device.

    Args:
        learner: the learner in training.
        device: device of the learner.
    """

    def __init__(self, learner: nn.Module, device: torch.device) -> None:
        self.parameters = {
            name: parameter
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad and parameter.numel()
        }
        self.first_step = torch.full((), -1, device=device)
        self.causes: dict[str, Tensor] = {}

    def finite_terms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {name: whether all entries are finite} for the terms of the loss and the unclipped gradients."""
        parts = [name for name in terms if name != "loss"]
        flags = {name: torch.isfinite(terms[name]) for name in (*parts, "loss")}  # the sum last, after its terms
        return flags | {
            f"the gradient of {name}": _finite(parameter.grad)
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }

    def finite_parameters(self) -> dict[str, Tensor]:
        """Return {name: whether all entries are finite} for the parameters."""
        return {f"parameter {name}": _finite(parameter) for name, parameter in self.parameters.items()}

    def mark(self, step: int, finite: Mapping[str, Tensor]) -> None:
        """Record the step and its non-finite quantities.

        Nothing is recorded if all quantities are finite, or if an earlier step has been recorded.

        Args:
            step: number of the step.
            finite: {name of a quantity: whether the quantity is finite, as a boolean tensor []}.
        """
        bad = ~torch.stack(list(finite.values()))
        is_first = bad.any() & (self.first_step < 0)
        self.first_step = torch.where(is_first, step, self.first_step)
        before = [self.causes.get(name, torch.zeros_like(is_first)) for name in finite]
        self.causes |= dict(zip(finite, torch.where(is_first, bad, torch.stack(before)), strict=True))

    @contextmanager
    def watch(self, progress: Callable[[], tuple[int, str]]) -> Iterator[None]:
        """Context manager that converts the error of a failed matrix factorisation to a UsageError.

        Args:
            progress: function that returns the number of the last step and a description of the last checkpoint.
        """
        try:
            yield
        except torch.linalg.LinAlgError:
            step, last_checkpoint = progress()
            self.check(last_checkpoint)
            raise UsageError(
                f"training has diverged: after step {step} a matrix cannot be factorised any more; {REMEDY} "
                f"({last_checkpoint})"
            ) from None

    def check(self, last_checkpoint: str) -> None:
        """Raise a UsageError if a non-finite step was recorded. The message ends with the text `last_checkpoint`."""
        if (step := int(self.first_step)) < 0:
            return
        bad = [name for name, flag in self.causes.items() if flag]
        same_kind = [name for name in bad if _kind(name) == _kind(bad[0])]
        names = [name for name in same_kind if name != "loss"] or same_kind
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UsageError(
            f"training has diverged: first non-finite value at step {step}: {', '.join(names[:SHOWN])}{more}; "
            f"{REMEDY} ({last_checkpoint})"
        )


def _finite(values: Tensor) -> Tensor:
    """Return whether all entries are finite, as a boolean tensor [].

    All entries are finite if and only if the largest absolute value is finite.
    """
    return torch.isfinite(torch.linalg.vector_norm(values.detach(), torch.inf))


def _kind(name: str) -> str:
    return name.partition(" ")[0] if " " in name else "term"
