"""CIFAR-FS: CIFAR-100 with the random class split of Bertinetto et al. (2019), 64 / 16 / 20 for train, val and test."""

from __future__ import annotations

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources.cifar100 import bank_of


def load() -> Bank:
    """Load CIFAR-FS, uint8 images [60000, 3, 32, 32], from METABAYES_DATA or, if it is not set, by torchvision."""
    return bank_of("cifar_fs")
