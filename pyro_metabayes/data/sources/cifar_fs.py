"""CIFAR-FS: CIFAR-100 with the class split of Bertinetto et al. (2019), 64 / 16 / 20 classes drawn at random."""

from __future__ import annotations

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources.cifar100 import bank_of


def load() -> Bank:
    """uint8 images [60000, 3, 32, 32] from METABAYES_DATA, or if it is not set, from the download of torchvision."""
    return bank_of("cifar_fs")
