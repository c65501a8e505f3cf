"""Pretraining of backbones on the training classes of a bank (data set), with a cache of the results."""

from pyro_metabayes.pretraining.extraction import embed_bank, extract
from pyro_metabayes.pretraining.features import PretrainedFeatures, pretrain
from pyro_metabayes.pretraining.prototypes import PrototypeScore
from pyro_metabayes.pretraining.restored_features import features_under
from pyro_metabayes.pretraining.settings import PretrainSettings

__all__ = [
    "PretrainSettings",
    "PretrainedFeatures",
    "PrototypeScore",
    "embed_bank",
    "extract",
    "features_under",
    "pretrain",
]
