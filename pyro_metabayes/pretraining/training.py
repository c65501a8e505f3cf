"""Backbones, trained once as part of a classifier of all training classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from pyro_metabayes.arrays import as_float
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError
from pyro_metabayes.pretraining.augmentation import augmented, turned
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.seeding import random_states, set_random_states


class CosineClassifier(nn.Module):
    """logits = scale * cos(w_c, x), over all training classes (Gidaris and Komodakis 2018, stage 1).

    Classes that the domains of a bank share are one class each.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features @ functional.normalize(self.weight, dim=-1).T


class Pretraining:
    """The training of a backbone in place, epoch by epoch; `state` between two of them is all that the next needs.

    score: validation accuracy of a backbone, or None; it must not touch torch's global noise.
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
        self.per_epoch = len(rows) // settings.batch_size
        self._check()
        _initialise(backbone)
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self.network = nn.ModuleDict(
            {"backbone": backbone, "classes": CosineClassifier(num_features, len(answers.unique()))}
        )
        if settings.rotation:
            self.network["turns"] = CosineClassifier(num_features, 4)
        self.network.to(device).requires_grad_(True).train()
        self.average = _average_of(self.network, settings)
        self.optimizer, self.schedule = _optimizer_of(self.network, settings, self.per_epoch)
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_classes: dict[str, Tensor] = {}

    def _check(self) -> None:
        if self.per_epoch == 0:
            expected = f"at least pretrain.batch_size={self.settings.batch_size} training images"
            raise UsageError(f"expected {expected}, got {len(self.labels)}; lower it or bring more")
        shape = tuple(self.images.shape[1:])
        if self.settings.rotation and (len(shape) != 3 or shape[1] != shape[2]):
            raise UsageError(f"expected square images for pretrain.rotation, got inputs of shape {shape}; set it to 0")

    @property
    def trained(self) -> nn.Module:
        """The backbone that is kept: that of the average, where there is one."""
        return self._trained("backbone")

    def _trained(self, part: str) -> nn.Module:
        network = self.network if self.average is None else self.average.module
        return network[part]  # type: ignore[index]

    def run_epoch(self) -> None:
        """One pass over the training images; a line more on the curve."""
        wall, cpu = time.perf_counter(), time.process_time()
        loss, right = torch.zeros(2, device=self.device)
        chosen = torch.randperm(len(self.labels))[: self.per_epoch * self.settings.batch_size]
        title = f"pretrain {self.epoch + 1}/{self.settings.epochs}"
        with tqdm(chosen.split(self.settings.batch_size), desc=title, unit="batch", disable=None, leave=False) as bar:
            for batch in bar:
                step_loss, step_right = self._step(batch)
                loss += step_loss
                right += step_right
            figures = {"loss": loss.item() / self.per_epoch, "accuracy": right.item() / len(chosen)}
        backbone = self.trained.eval()
        accuracy = self.score(backbone)
        self.network.train()
        so_far = [line["val_accuracy"] for line in self.curve]
        if self.settings.keep == "best" and (accuracy is None or accuracy > max(so_far, default=-1.0)):
            self.best, self.best_classes = _copied(backbone), _copied(self._trained("classes"))
        now = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        self.curve.append({"epoch": self.epoch + 1, **figures, "val_accuracy": accuracy, **now})

    @property
    def epoch(self) -> int:
        """How many are finished."""
        return len(self.curve)

    def weights(self) -> dict[str, Tensor]:
        """What is kept of the backbone, on the CPU."""
        return self.best or _copied(self.trained)

    def classes(self) -> dict[str, Tensor]:
        """Weights and scale of the classifier that the kept backbone was trained with, on the CPU."""
        return self.best_classes if self.best else _copied(self._trained("classes"))

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the optimiser; its loss, and how many images of the batch are right."""
        images = as_float(self.images[batch].to(self.device))
        labels = self.labels[batch].to(self.device)
        loss, right = self._loss(augmented(images, self.settings), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach(), right

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of classes (of both of a mixed pair), and of the turns of half of the batch once more."""
        its, others, share = self.settings, labels, 1.0
        if its.mixup:
            partner = torch.randperm(len(images), device=images.device)
            share = torch.distributions.Beta(its.mixup, its.mixup).sample().item()
            images, others = share * images + (1 - share) * images[partner], labels[partner]
        quarters = torch.randint(0, 4, (len(images) // 2,), device=images.device) if its.rotation else None
        if quarters is not None:
            images = torch.cat([images, turned(images[: len(quarters)], quarters)])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=its.precision == "bf16-mixed"):
            features = self.network["backbone"](images)
            logits = self.network["classes"](features[: len(labels)])
        loss = share * functional.cross_entropy(logits.float(), labels, label_smoothing=its.label_smoothing)
        if share < 1:
            loss += (1 - share) * functional.cross_entropy(logits.float(), others, label_smoothing=its.label_smoothing)
        if quarters is not None:
            turns = self.network["turns"](features[len(labels) :].float())
            loss += its.rotation * functional.cross_entropy(turns, quarters)
        return loss, (logits.argmax(-1) == labels).sum()

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, torch's noise included."""
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
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["noise"][0])
        set_random_states(self.device, state["noise"][1:])
        self.curve, self.best, self.best_classes = list(state["curve"]), state["best"], state.get("best_classes", {})


def _copied(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}


def _average_of(network: nn.Module, settings: PretrainSettings) -> AveragedModel | None:
    if not settings.average:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True)


def _optimizer_of(network: nn.Module, settings: PretrainSettings, per_epoch: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = SGD(
        network.parameters(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    if settings.schedule == "one_cycle":
        num_steps = settings.epochs * per_epoch
        return optimizer, OneCycleLR(optimizer, settings.learning_rate, num_steps, pct_start=0.3)
    warmup, milestones = settings.warmup * per_epoch, [epoch * per_epoch for epoch in settings.milestones]

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return warm * 0.1 ** sum(step >= milestone for milestone in milestones)

    return optimizer, LambdaLR(optimizer, factor)


def _initialise(backbone: nn.Module) -> None:
    """Fresh weights from the noise of pretrain.seed, whatever was drawn before."""
    for module in [*list(backbone.modules())[1:], backbone]:  # what the whole says of its parts comes last
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
