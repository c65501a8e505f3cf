"""Pretraining of a backbone on a bank (data set), and the features of the bank. Both are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.holdout import halves, held_out_rows, without_rows
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.pretraining.feature_cache import cached_bank, weights_path
from pyro_metabayes.pretraining.prototypes import PrototypeScore
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.pretraining.training import Pretraining
from pyro_metabayes.seeding import seeded
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import expecting
from pyro_metabayes.training.progress import progress


@dataclass(frozen=True)
class PretrainedFeatures:
    """A bank (data set) with the features of a pretrained backbone.

    Attributes:
        bank: the bank with features as inputs.
        curve: loss, training and validation accuracy, and seconds of every epoch.
        path: file of the cached weights.
        classes: weights [G, D] of the classifier of pretraining, for G training classes and D features. None for a
            cache of an earlier version.
    """

    bank: Bank
    curve: Sequence[Mapping[str, Any]]
    path: Path
    classes: Tensor | None = None

    def held_out_accuracy(self, per_class: int) -> float | None:
        """Compute the accuracy (0 to 1) of the pretraining classifier on held-out images of the training classes.

        Args:
            per_class: number of held-out images per training class. The accuracy is measured on half of them.

        Returns:
            The accuracy. None if per_class < 2 (too few to halve), or in a cache of an older version.
        """
        if self.classes is None or per_class < 2:
            return None
        rows = halves(held_out_rows(self.bank, per_class))["test"]
        predicted = (self.bank.in_memory[rows] @ functional.normalize(self.classes, dim=-1).mT).argmax(-1)
        return (predicted == self.bank.answers("train").unsqueeze(1)).float().mean().item()


def pretrain(
    backbone: nn.Module, specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings, device: torch.device
) -> PretrainedFeatures:
    """Return the features of a bank under a pretrained backbone. The backbone is pretrained if it is not in the cache.

    Weights and features are cached under a hash of the specification, the bank and the settings. Runs with other guides
    reuse them. An interrupted pretraining continues after the last finished epoch.

    Args:
        backbone: the network, which receives the weights.
        specification: class and settings of the backbone.
        bank: the data set, with images as inputs.
        settings: settings of pretraining.
        device: device of the network.

    Raises:
        UsageError: a cached file is damaged, or the bank is not suitable for the settings.
        Interrupted: after SIGINT. The message says how to continue.
    """
    name = specification["_target_"].split(".")[-2]
    path = weights_path(name, specification, bank, settings)
    if not path.exists():
        _cache_weights(path, name, backbone, bank, settings, device)
    with expecting(f"the weights of a pretrained backbone in {path} (if you delete the file, it is pretrained again)"):
        state = checkpoint.load(path)
        backbone.load_state_dict(state["weights"])
        curve, classes = list(state["curve"]), state.get("classes", {}).get("weight")
    backbone.to(device).eval()
    return PretrainedFeatures(cached_bank(path, name, backbone, bank, settings, device), curve, path, classes)


def _cache_weights(
    path: Path, name: str, backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> None:
    unfinished = path.with_suffix(".unfinished.pt")
    training = _train(backbone, name, _training_bank(bank, settings), settings, device, unfinished)
    state = {"weights": training.weights(), "classes": training.classes(), "curve": training.curve}
    checkpoint.save(path, state)
    unfinished.unlink(missing_ok=True)
    print(f"pretrained {name}: {_summary(training)}; kept in {path}")


def _training_bank(bank: Bank, settings: PretrainSettings) -> Bank:
    """Return the bank without the held-out images (settings.holdout_per_class)."""
    held_out = settings.holdout_per_class
    return without_rows(bank, held_out_rows(bank, held_out)) if held_out else bank


def _train(
    backbone: nn.Module, name: str, bank: Bank, settings: PretrainSettings, device: torch.device, unfinished: Path
) -> Pretraining:
    """Train all epochs, or continue from the file `unfinished`. The state is saved there after each epoch."""
    with seeded(settings.seed):
        training = Pretraining(backbone, bank, settings, device, PrototypeScore(bank, device))
        if unfinished.exists():
            with expecting(f"an unfinished pretraining in {unfinished} (if you delete the file, it starts again)"):
                training.load(checkpoint.load(unfinished))
            print(f"pretraining of {name} continues after epoch {training.epoch} of {settings.epochs}")
        else:
            print(f"no pretrained {name} for this data yet: pretraining it once, epochs: {settings.epochs}")
        try:
            _run_epochs(training, name, unfinished)
        except KeyboardInterrupt:
            progress = "no epoch was finished: the same command starts again"
            if training.epoch:
                progress = f"epochs 1 to {training.epoch} are kept: the same command continues"
            raise Interrupted(f"interrupted in the pretraining of {name}; {progress}") from None
    return training


def _run_epochs(training: Pretraining, name: str, unfinished: Path) -> None:
    """Train the remaining epochs. The state is saved in the file `unfinished` after each epoch."""
    epochs, batches = training.settings.epochs, training.steps_per_epoch
    with progress(f"pretrain {name}", "batches", epochs * batches, training.epoch * batches, leave=False) as shown:
        while training.epoch < epochs:
            training.run_epoch(shown)
            checkpoint.save(unfinished, training.state())
            accuracy = f"{training.curve[-1]['accuracy']:.1%} (chance {1 / training.num_classes:.1%})"
            shown.set_postfix(epoch=f"{training.epoch}/{epochs}", accuracy=accuracy)


def _summary(training: Pretraining) -> str:
    line, chance = training.curve[-1], f"{1 / training.num_classes:.1%}"
    text = f"training accuracy {line['accuracy']:.1%} among {training.num_classes} classes (chance {chance})"
    score = line["val_accuracy"]
    return text if score is None else f"{text}, class means {score:.1%} on 5-way 1-shot validation tasks"
