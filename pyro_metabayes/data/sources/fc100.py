"""FC100: CIFAR-100 split by superclass (Oreshkin et al. 2018), 60 / 20 / 20 classes for train, val and test."""

from __future__ import annotations

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources.cifar100 import bank_of


def load() -> Bank:
    """Load FC100, uint8 images [60000, 3, 32, 32], from METABAYES_DATA or, if it is not set, by torchvision."""
    return bank_of("fc100")
