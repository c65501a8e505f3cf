"""Training of a backbone as part of a classifier over all training classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.images import as_float
from pyro_metabayes.pretraining.augmentation import augment
from pyro_metabayes.pretraining.classification import classification_loss, classifier_of
from pyro_metabayes.pretraining.optimisation import average_of, optimizer_of
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.seeding import random_states, set_random_states
from pyro_metabayes.training.progress import Progress


class Pretraining:
    """Training loop of pretraining. Each call of `run_epoch` trains the backbone in place for one epoch.

    Args:
        backbone: the network.
        bank: the data set, with images as inputs. Only the training classes are used.
        settings: settings of pretraining.
        device: device of the network.
        score: function that returns the validation accuracy of a backbone, or None. It must not change torch's random
            state.

    Raises:
        UsageError: there are fewer training images than in a batch, or images are not square with pretrain.rotation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        bank: Bank,
        settings: PretrainSettings,
        device: torch.device,
        score: Callable[[nn.Module], float | None],
    ) -> None:
        rows, classes, answers = bank.rows("train"), bank.splits["train"], bank.answers("train")
        self.settings, self.device, self.score = settings, device, score
        self.images, self.labels = bank.in_memory[rows], answers[torch.searchsorted(classes, bank.labels[rows])]
        self.steps_per_epoch = len(rows) // settings.batch_size
        self._check()
        self.num_classes = len(answers.unique())
        self.network = classifier_of(backbone, self.num_classes, rotation=settings.rotation > 0)
        self.network.to(device).requires_grad_(True).train()
        self.average = average_of(self.network, settings)
        self.optimizer, self.schedule = optimizer_of(self.network, settings, self.steps_per_epoch)
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_classes: dict[str, Tensor] = {}

    def _check(self) -> None:
        if self.steps_per_epoch == 0:
            expected = f"at least pretrain.batch_size={self.settings.batch_size} training images"
            raise UsageError(f"expected {expected}, got {len(self.labels)}; lower pretrain.batch_size or add images")
        shape = tuple(self.images.shape[1:])
        if self.settings.rotation and (len(shape) != 3 or shape[1] != shape[2]):
            raise UsageError(
                f"expected square images for pretrain.rotation, got inputs of shape {shape}; set pretrain.rotation=0"
            )

    @property
    def backbone(self) -> nn.Module:
        """Backbone with the averaged weights if settings.average > 0, else with the current weights."""
        return self._part("backbone")

    def _part(self, part: str) -> nn.Module:
        network = self.network if self.average is None else self.average.module
        return network[part]  # type: ignore[index]

    def run_epoch(self, shown: Progress | None = None) -> None:
        """Train for one epoch, and append a line of metrics to `curve`. `shown` is a progress bar of batches."""
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = self._train_epoch(shown)
        accuracy = self.score(self.backbone.eval())
        self.network.train()
        previous = [line["val_accuracy"] for line in self.curve]
        if self.settings.keep == "best" and (accuracy is None or accuracy > max(previous, default=-1.0)):
            self.best, self.best_classes = _copy_of(self.backbone), _copy_of(self._part("classes"))
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        self.curve.append({"epoch": self.epoch + 1, **metrics, "val_accuracy": accuracy, **seconds})

    def _train_epoch(self, shown: Progress | None) -> dict[str, float]:
        """Train on the batches of one epoch. Return the mean loss in nats and the training accuracy (0 to 1)."""
        loss, hits = torch.zeros(2, device=self.device)
        rows = torch.randperm(len(self.labels))[: self.steps_per_epoch * self.settings.batch_size]
        for batch in rows.split(self.settings.batch_size):
            step_loss, step_hits = self._step(batch)
            loss += step_loss
            hits += step_hits
            if shown is not None:
                shown.update()
        return {"loss": loss.item() / self.steps_per_epoch, "accuracy": hits.item() / len(rows)}

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the backbone, copied to the CPU.

        With keep=best, they are the weights after the best epoch, otherwise after the last epoch.
        """
        return self.best or _copy_of(self.backbone)

    def classes(self) -> dict[str, Tensor]:
        """Return weights and scale of the classifier over training classes, copied to the CPU.

        The epoch is the same as for the method `weights`.
        """
        return self.best_classes if self.best else _copy_of(self._part("classes"))

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of the optimiser. Return the loss and the number of correctly classified images of the batch."""
        images = as_float(self.images[batch].to(self.device))
        labels = self.labels[batch].to(self.device)
        loss, hits = classification_loss(self.network, augment(images, self.settings), labels, self.settings)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach(), hits

    def state(self) -> dict[str, Any]:
        """Return the state needed to continue with the next epoch, including torch's random state."""
        average = {} if self.average is None else self.average.state_dict()
        return {
            "network": self.network.state_dict(),
            "average": average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "noise": [torch.get_rng_state(), *random_states(self.device)],
            "curve": self.curve,
            "best": self.best,
            "best_classes": self.best_classes,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned. Training then continues with the next epoch."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["noise"][0])
        set_random_states(self.device, state["noise"][1:])
        self.curve, self.best, self.best_classes = list(state["curve"]), state["best"], state.get("best_classes", {})


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
