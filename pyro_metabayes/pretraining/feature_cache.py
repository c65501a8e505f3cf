"""Cache of pretrained weights, and of the features of a bank (data set) under a backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.pretraining.augmentation import augment
from pyro_metabayes.pretraining.extraction import extract, extract_rotations
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.seeding import seeded
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.cache import cache_folder
from pyro_metabayes.storage.untrusted import expecting


def weights_path(name: str, specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings) -> Path:
    """Return the path of the cached pretrained weights of a backbone, which depends on all arguments except views.

    Args:
        name: name of the backbone, the start of the file name.
        specification: class and settings of the backbone.
        bank: the data set of pretraining.
        settings: settings of pretraining.
    """
    return cache_folder() / "backbones" / f"{name}-{_cache_key(specification, bank, settings)}.pt"


def _cache_key(specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings) -> str:
    """Compute a hash (16 hexadecimal digits) of specification, bank and settings, without settings.views."""
    relevant = {name: value for name, value in asdict(settings).items() if name != "views"}
    if not settings.holdout_per_class:
        del relevant["holdout_per_class"]  # caches from versions without this setting keep their names
    key = json.dumps([dict(specification), relevant, bank.fingerprint()], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def cached_bank(
    path: Path, name: str, backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> Bank:
    """Return the bank with features as inputs. Features are read from a file, or else computed and saved.

    Args:
        path: path of the cached weights. The file of features lies in the same folder.
        name: name of the backbone, for messages.
        backbone: the network with these weights.
        bank: the data set.
        settings: settings of pretraining.
        device: device of the network.
    """
    features = path.with_suffix(f".features{settings.views}.pt")
    if not features.exists():
        _cache_features(features, name, backbone, bank, settings, device)
    with expecting(f"features of the bank in {features} (if you delete the file, they are computed again)"):
        return _with_features(bank, **checkpoint.load(features))


def _cache_features(
    path: Path, name: str, backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> None:
    views = f" and of {settings.views} augmented views" if settings.views else ""
    print(f"features of {len(bank.inputs)} inputs{views} with {name}: computed once, kept in {path}", flush=True)
    try:
        checkpoint.save(path, _features(backbone, bank, settings, device))
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted before all features of {name} were computed; the weights are saved, and the same command "
            "continues"
        ) from None


def _features(
    backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> dict[str, Tensor | None]:
    """Compute the features of all inputs, of augmented training images and of rotated images; None for unused ones."""
    inputs, rotations = extract(backbone, bank.in_memory, device), extract_rotations(backbone, bank, device)
    if not settings.views:
        return {"inputs": inputs, "views": None, "turned": rotations}
    images = bank.in_memory[bank.rows("train")]
    with seeded(settings.seed):
        views = [extract(backbone, images, device, lambda x: augment(x, settings)) for _ in range(settings.views)]
    return {"inputs": inputs, "views": torch.stack(views), "turned": rotations}


def _with_features(bank: Bank, inputs: Tensor, views: Tensor | None = None, turned: Tensor | None = None) -> Bank:
    """Return the bank with the tensors of `_features` as inputs."""
    return bank.with_inputs(inputs, views, {} if turned is None else {"turned": turned})
