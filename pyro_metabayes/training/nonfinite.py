"""Where a training run went wrong first: marked on the device in every step, read when a line is logged or saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_metabayes.errors import UsageError

REMEDY = "lower train.learning_rate or set train.clip"
SHOWN = 3  # quantities that a message names


class Divergence:
    """The first step in which something was not finite, and what of it: terms of the loss, gradients, parameters.

    Within a step a quantity follows from those of the kinds before it, so the first bad kind is where it began.
    Nothing here waits for the device but `check`.
    """

    def __init__(self, learner: nn.Module, device: torch.device) -> None:
        trained = [(name, its) for name, its in learner.named_parameters() if its.requires_grad and its.numel()]
        self.parameters = dict(trained)
        self.first = torch.full((), -1, device=device)
        self.causes: dict[str, Tensor] = {}

    def of_terms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whether each term of the loss is finite, and the gradient of each parameter, before it is clipped."""
        parts = [name for name in terms if name != "loss"]
        named = {name: torch.isfinite(terms[name]) for name in (*parts, "loss")}  # the sum follows from its parts
        return named | {
            f"the gradient of {name}": _finite(its.grad)
            for name, its in self.parameters.items()
            if its.grad is not None
        }

    def of_parameters(self) -> dict[str, Tensor]:
        return {f"parameter {name}": _finite(its) for name, its in self.parameters.items()}

    def mark(self, step: int, finite: Mapping[str, Tensor]) -> None:
        """Keep the step and what was not finite in it, unless there has been one before."""
        bad = ~torch.stack(list(finite.values()))
        new = bad.any() & (self.first < 0)
        self.first = torch.where(new, step, self.first)
        before = [self.causes.get(name, torch.zeros_like(new)) for name in finite]
        self.causes |= dict(zip(finite, torch.where(new, bad, torch.stack(before)), strict=True))

    @contextmanager
    def watch(self, state: Callable[[], tuple[int, str]]) -> Iterator[None]:
        """Inside, a matrix that cannot be factorised ends the run; `state`: the step, and what is kept."""
        try:
            yield
        except torch.linalg.LinAlgError:
            step, kept = state()
            self.check(kept)
            raise UsageError(
                f"training has diverged: after step {step} a matrix cannot be factorised any more; {REMEDY} ({kept})"
            ) from None

    def check(self, kept: str) -> None:
        """End a run that has diverged; `kept` says what there is to go on with."""
        if (step := int(self.first)) < 0:
            return
        bad = [name for name, its in self.causes.items() if its]
        kind = [name for name in bad if _kind(name) == _kind(bad[0])]
        names = [name for name in kind if name != "loss"] or kind
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UsageError(
            f"training has diverged: at step {step} {', '.join(names[:SHOWN])}{more} went first, and is not finite; "
            f"{REMEDY} ({kept})"
        )


def _finite(values: Tensor) -> Tensor:
    """One flag for all entries; their largest is NaN or infinite if any of them is."""
    return torch.isfinite(torch.linalg.vector_norm(values.detach(), torch.inf))


def _kind(name: str) -> str:
    return name.partition(" ")[0] if " " in name else "term"
