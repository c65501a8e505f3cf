"""Bayesian meta-learning in Pyro: one generative model, every inference scheme as a guide."""

import pyro

# Before any PyroModule exists: with the global store two modules of one name share their values.
pyro.settings.set(module_local_params=True)

from pyro_metabayes.episodes import Episodes, Observed, class_means, class_sums, concatenate  # noqa: E402
from pyro_metabayes.errors import UsageError  # noqa: E402
from pyro_metabayes.guide import Guide  # noqa: E402
from pyro_metabayes.learner import MetaLearner, Prediction  # noqa: E402
from pyro_metabayes.model import Model  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "Episodes",
    "Guide",
    "MetaLearner",
    "Model",
    "Observed",
    "Prediction",
    "UsageError",
    "class_means",
    "class_sums",
    "concatenate",
]
