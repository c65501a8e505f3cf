"""The cache of pretrained weights, and of the features of a bank that a backbone computes."""

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
    """Path of the cached pretrained weights; the features of the bank are cached in the same folder."""
    return cache_folder() / "backbones" / f"{name}-{_cache_key(specification, bank, settings)}.pt"


def _cache_key(specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings) -> str:
    """Hash (16 hexadecimal digits) of everything on which the weights depend, which excludes settings.views."""
    relevant = {name: value for name, value in asdict(settings).items() if name != "views"}
    if not settings.holdout_per_class:
        del relevant["holdout_per_class"]  # so that caches that are older than this setting keep their names
    key = json.dumps([dict(specification), relevant, bank.fingerprint()], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def cached_bank(
    path: Path, name: str, backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> Bank:
    """The bank with its features, read from the file next to the weights `path`; without it, computed and saved."""
    features = path.with_suffix(f".features{settings.views}.pt")
    if not features.exists():
        _cache_features(features, name, backbone, bank, settings, device)
    with expecting(f"features of the bank in {features} (without the file they are computed again)"):
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
            f"interrupted before all features with {name} were computed; its weights are kept: the same command goes on"
        ) from None


def _features(
    backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device
) -> dict[str, Tensor | None]:
    """Features of all inputs, of augmented views of the training images, and of rotated images (None if unused)."""
    inputs, rotations = extract(backbone, bank.in_memory, device), extract_rotations(backbone, bank, device)
    if not settings.views:
        return {"inputs": inputs, "views": None, "turned": rotations}
    images = bank.in_memory[bank.rows("train")]
    with seeded(settings.seed):
        views = [extract(backbone, images, device, lambda x: augment(x, settings)) for _ in range(settings.views)]
    return {"inputs": inputs, "views": torch.stack(views), "turned": rotations}


def _with_features(bank: Bank, inputs: Tensor, views: Tensor | None = None, turned: Tensor | None = None) -> Bank:
    """The bank with the tensors of `_features` in place of its inputs."""
    return bank.with_inputs(inputs, views, {} if turned is None else {"turned": turned})
