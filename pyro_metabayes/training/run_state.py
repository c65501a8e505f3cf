"""State of a training run between two steps. It is saved in a checkpoint, and restored when a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import random_states, set_random_states
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import count_of, expecting, within
from pyro_metabayes.training.optimizer_state import Optimisation
from pyro_metabayes.validation.same_training import refuse_another_training
from pyro_metabayes.validation.trained_on import TaskRange


class RunState:
    """State needed to resume training.

    Attributes:
        step: number of steps taken.
        seconds: training time so far, in seconds.
        best: weights and specification of the learner with the smallest validation NLL so far (`portable`).
        best_nll: smallest validation NLL so far, in nats per query.
        skipped_steps: number of skipped steps, as a scalar tensor on the device.

    Args:
        learner: the learner in training.
        optimisation: the optimiser with its learning-rate schedule.
        initial: weights and specification of the learner before training (`portable`).
        device: device of the training.
    """

    def __init__(
        self, learner: MetaLearner, optimisation: Optimisation, initial: dict[str, Any], device: torch.device
    ) -> None:
        self.learner, self.optimisation, self.device = learner, optimisation, device
        self.step, self.seconds, self.best_nll, self.best = 0, 0.0, math.inf, initial
        self.skipped_steps: Tensor = torch.zeros((), dtype=torch.long, device=device)

    @property
    def skipped(self) -> int:
        """Number of steps skipped because the loss or a gradient was not finite (train.on_nan=skip)."""
        return int(self.skipped_steps)

    def update_best(self, nll: float) -> None:
        """Store the current learner if its validation NLL is the smallest so far."""
        if nll < self.best_nll:
            self.best_nll, self.best = nll, self.learner.portable()

    def state_dict(self) -> dict[str, Any]:
        """Return learner, best learner and training state as tensors and plain values, for a checkpoint."""
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "best_nll": self.best_nll,
            "skipped": self.skipped,
            "optimizer": self.optimisation.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": random_states(self.device),
        }
        return {"learner": self.learner.portable(), "best": self.best, "training": training}

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write checkpoint.pt in the folder, with the state and the plain values `config`."""
        checkpoint.save(folder / "checkpoint.pt", self.state_dict() | {"config": dict(config)})

    def restore(self, folder: Path, config: Mapping[str, Any], num_steps: int) -> None:
        """Restore the state from checkpoint.pt in the folder, if there is one.

        Args:
            folder: folder of the run.
            config: plain values that describe the training. A checkpoint of `fit` with another description is refused.
            num_steps: number of steps of the training.

        Raises:
            UsageError: the checkpoint is damaged, belongs to another training, or has more than num_steps steps.
        """
        if (path := within(folder, "checkpoint.pt")).exists():
            with expecting(f"the checkpoint of an interrupted run in {folder}"):
                saved = checkpoint.load(path)
                refuse_another_training(saved["config"], config, folder)
                self.load_state_dict(saved, num_steps, folder)

    def load_state_dict(self, state: Mapping[str, Any], num_steps: int, folder: Path | None) -> None:
        """Restore a state that `state_dict` returned.

        Args:
            state: the state.
            num_steps: number of steps of the training.
            folder: folder of the run, for the message.

        Raises:
            UsageError: the state has more than `num_steps` steps, or belongs to another learner.
        """
        training = state["training"]
        step = count_of(training["step"])
        if step > num_steps:
            raise UsageError(
                f"expected steps >= {step}, the number of steps already taken in {folder}, got steps={num_steps}; "
                "increase steps"
            )
        self.learner.refuse_other(state["best"]["weights"])
        self.learner.refuse_other(state["learner"]["weights"])
        self.optimisation.load_state_dict(training["optimizer"], state["learner"]["weights"])
        self.learner.load_weights(state["learner"]["weights"])
        self.learner.trained_on = TaskRange.restored(state["learner"].get("trained_on"))
        self.step, self.seconds = step, float(training["seconds"])
        self.best_nll, self.best = float(training["best_nll"]), state["best"]
        self.skipped_steps.fill_(count_of(training["skipped"]))
        torch.set_rng_state(training["random"])
        # Version 0.1 wrote the state of the device under the name random_cuda.
        set_random_states(self.device, training.get("random_cuda", training.get("random_device", [])))
