"""Features of a bank (data set) under the backbone of a finished run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.pretraining.feature_cache import cached_bank, weights_path
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import expecting


def features_under(
    backbone: nn.Module, specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings, device: torch.device
) -> Bank:
    """Return the bank (data set) with the features of a backbone, without training the backbone.

    If the backbone has the weights of a cached pretraining on this bank, the cached features are reused. Otherwise
    features are cached under a hash of the weights, the settings and the bank.

    Args:
        backbone: the network.
        specification: class and settings of the backbone.
        bank: the data set, with images as inputs.
        settings: settings of pretraining.
        device: device of the network.
    """
    name = specification["_target_"].split(".")[-2]
    path = weights_path(name, specification, bank, settings)
    if not _holds_weights_of(path, backbone):
        path = path.with_name(f"{name}-{_key_of_weights(backbone, bank, settings)}.pt")
    return cached_bank(path, name, backbone.to(device).eval(), bank, settings, device)


def _holds_weights_of(path: Path, backbone: nn.Module) -> bool:
    """Return whether the file of a cached pretraining exists and has the weights of this backbone."""
    if not path.exists():
        return False
    with expecting(f"the weights of a pretrained backbone in {path} (if you delete the file, it is pretrained again)"):
        saved, weights = checkpoint.load(path)["weights"], backbone.state_dict()
        return saved.keys() == weights.keys() and all(
            torch.equal(saved[name], value.cpu()) for name, value in weights.items()
        )


def _key_of_weights(backbone: nn.Module, bank: Bank, settings: PretrainSettings) -> str:
    """Compute a hash (16 hexadecimal digits) of what features depend on: weights, settings and bank (data set)."""
    digest = hashlib.sha256(json.dumps([asdict(settings), bank.fingerprint()], sort_keys=True).encode())
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_weights(backbone: nn.Module) -> str:
    """Compute a hash (16 hexadecimal digits) of the weights of a backbone."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
