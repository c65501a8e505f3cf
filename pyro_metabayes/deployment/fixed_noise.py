"""Recording of the random numbers of a computation, and reuse of the records when the computation runs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_metabayes.handlers.own_generators import OwnGenerators


class RecordedNoise(TorchFunctionMode):
    """Torch mode that draws random numbers from its own generators and records them.

    Usage: `with draws_by(RecordedNoise(seed))` (seeding.py). The numbers are the same as in `noise_of(seed)`.

    Attributes:
        draws: the recorded tensors, in the order of the draws.
        functions: the torch function of each draw.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generators = OwnGenerators(seed)
        self.draws: list[Tensor] = []
        self.functions: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.states()
        with self._generators:
            value = func(*args, **(kwargs or {}))
        if not _equal(before, self.states()):
            self.draws.append(value.detach().clone())
            self.functions.add(func)
        return value

    def states(self) -> dict[torch.device, Tensor]:
        """Return the state of each generator that has been used, by device."""
        return self._generators.states()

    def set_states(self, states: Mapping[torch.device, Tensor]) -> None:
        """Restore the generators from their states, by device."""
        self._generators.set_states(states)


class RepeatedNoise(TorchFunctionMode):
    """Torch mode that returns recorded draws instead of new draws, so that torch.export can trace a program.

    Args:
        draws: the recorded tensors, `RecordedNoise.draws`.
        functions: the torch function of each draw, `RecordedNoise.functions`.
    """

    def __init__(self, draws: Sequence[Tensor], functions: set[Any]) -> None:
        super().__init__()
        self._draws, self._functions = iter(draws), functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self._draws).clone() if func in self._functions else func(*args, **(kwargs or {}))

    def states(self) -> dict[torch.device, Tensor]:
        return {}

    def set_states(self, states: Mapping[torch.device, Tensor]) -> None:
        """Do nothing: the recorded draws are returned in their order, also after a restored state."""


def _equal(states: Mapping[torch.device, Tensor], others: Mapping[torch.device, Tensor]) -> bool:
    return states.keys() == others.keys() and all(torch.equal(state, others[key]) for key, state in states.items())
