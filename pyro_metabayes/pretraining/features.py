"""The features of a bank under a pretrained backbone, cached with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.holdout import halves, held_out_rows, without_rows
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.pretraining.augmentation import augmented
from pyro_metabayes.pretraining.extraction import extract, extract_turned
from pyro_metabayes.pretraining.prototypes import PrototypeScore
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.pretraining.training import Pretraining
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.cache import cache_folder
from pyro_metabayes.storage.untrusted import expecting


@dataclass(frozen=True)
class Pretrained:
    """A bank of features; curve: loss, training and validation accuracy and seconds of every epoch.

    classes [G_train, D]: the weights of the training classes in the classifier that the backbone was part of; None
    where a cache of an earlier version lacks them.
    """

    bank: Bank
    curve: Sequence[Mapping[str, Any]]
    path: Path
    classes: Tensor | None = None

    def held_out_accuracy(self, per_class: int) -> float | None:
        """Share of the images held out for the test that its classifier gets right, among all training classes."""
        if self.classes is None or per_class < 2:
            return None
        rows = halves(held_out_rows(self.bank, per_class))["test"]
        answers = (self.bank.in_memory[rows] @ functional.normalize(self.classes, dim=-1).mT).argmax(-1)
        return (answers == self.bank.answers("train").unsqueeze(1)).float().mean().item()


def pretrained(
    backbone: nn.Module, specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings, device: torch.device
) -> Pretrained:
    """Bring the backbone to its pretrained weights, and give the bank of its features.

    Both come from the cache where a backbone of this specification was pretrained on this bank with
    these settings before; swapping guides costs nothing then. A pretraining that was interrupted goes
    on after its last finished epoch.
    """
    its = {name: value for name, value in asdict(settings).items() if name != "views"}  # they leave the weights alone
    if not settings.holdout_per_class:
        del its["holdout_per_class"]  # caches without one are named as before there was such a setting
    key = json.dumps([dict(specification), its, bank.fingerprint()], sort_keys=True)
    name = specification["_target_"].split(".")[-2]
    path = cache_folder() / "backbones" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        training = _train(backbone, name, _seen(bank, settings), settings, device, path.with_suffix(".unfinished.pt"))
        found = {"weights": training.weights(), "classes": training.classes(), "curve": training.curve}
        checkpoint.save(path, found)
        path.with_suffix(".unfinished.pt").unlink(missing_ok=True)
        num_classes = len(bank.answers("train").unique())
        print(f"pretrained {name}: {_summary(training.curve[-1], num_classes)}; kept in {path}")
    with expecting(f"a backbone that was pretrained here in {path} (without the file it is pretrained anew)"):
        state = checkpoint.load(path)
        backbone.load_state_dict(state["weights"])
        curve, classes = list(state["curve"]), state.get("classes", {}).get("weight")
    backbone.to(device).eval()
    features = path.with_suffix(f".features{settings.views}.pt")
    if not features.exists():
        _keep_features(features, name, backbone, bank, settings, device)
    with expecting(f"features of the bank in {features} (without the file they are made anew)"):
        return Pretrained(_with_features(bank, **checkpoint.load(features)), curve, path, classes)


def _seen(bank: Bank, settings: PretrainSettings) -> Bank:
    """What is trained on: all but the inputs that are held out."""
    held_out = settings.holdout_per_class
    return without_rows(bank, held_out_rows(bank, held_out)) if held_out else bank


def _keep_features(
    path: Path, name: str, backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> None:
    views = f" and of {settings.views} augmented views" if settings.views else ""
    print(f"features of {len(bank.inputs)} inputs{views} under {name}: made once, kept in {path}", flush=True)
    try:
        checkpoint.save(path, _features(backbone, bank, settings, device))
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted before all features under {name} were made; its weights are kept: the same command goes on"
        ) from None


def _features(
    backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> dict[str, Tensor | None]:
    """Of every input, of augmented ones of the training classes, and of turned ones where a bank asks for them."""
    inputs, turned = extract(backbone, bank.in_memory, device), extract_turned(backbone, bank, device)
    if not settings.views:
        return {"inputs": inputs, "views": None, "turned": turned}
    images = bank.in_memory[bank.rows("train")]
    with noise_of(settings.seed):
        views = [extract(backbone, images, device, lambda x: augmented(x, settings)) for _ in range(settings.views)]
    return {"inputs": inputs, "views": torch.stack(views), "turned": turned}


def _with_features(bank: Bank, inputs: Tensor, views: Tensor | None = None, turned: Tensor | None = None) -> Bank:
    """The bank over the tensors of `_features`."""
    return bank.with_inputs(inputs, views, {} if turned is None else {"turned": turned})


def _train(
    backbone: nn.Module, name: str, bank: Bank, settings: PretrainSettings, device: torch.device, unfinished: Path
) -> Pretraining:
    """A whole pretraining, whose state after each epoch lies in `unfinished`."""
    with noise_of(settings.seed):
        training = Pretraining(backbone, bank, settings, device, PrototypeScore(bank, device))
        if unfinished.exists():
            with expecting(f"an unfinished pretraining in {unfinished} (without the file it starts again)"):
                training.load(checkpoint.load(unfinished))
            print(f"pretraining of {name} goes on after epoch {training.epoch} of {settings.epochs}")
        else:
            print(f"no pretrained {name} for this data yet: pretraining it once, epochs: {settings.epochs}")
        try:
            while training.epoch < settings.epochs:
                training.run_epoch()
                checkpoint.save(unfinished, training.state())
        except KeyboardInterrupt:
            first = "no epoch was finished: the same command starts again"
            kept = f"epochs 1 to {training.epoch} are kept: the same command goes on" if training.epoch else first
            message = f"interrupted in the pretraining of {name}; {kept}"
            raise Interrupted(message) from None
    return training


def _summary(line: Mapping[str, Any], num_classes: int) -> str:
    chance = f"{1 / num_classes:.1%}"
    text = f"{line['accuracy']:.1%} of the training images right among {num_classes} classes (chance {chance})"
    score = line["val_accuracy"]
    return text if score is None else f"{text}, class means {score:.1%} of 5-way 1-shot validation tasks"
