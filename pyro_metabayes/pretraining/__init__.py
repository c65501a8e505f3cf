"""Backbones, pretrained once on the training classes and cached with the features of the whole bank."""

from pyro_metabayes.pretraining.extraction import embedded, extract
from pyro_metabayes.pretraining.features import Pretrained, pretrained
from pyro_metabayes.pretraining.prototypes import PrototypeScore
from pyro_metabayes.pretraining.settings import PretrainSettings

__all__ = ["PretrainSettings", "Pretrained", "PrototypeScore", "embedded", "extract", "pretrained"]
