"""Bayesian meta-learning in Pyro: one generative model, every inference scheme as a guide."""

from pathlib import Path

import pyro

# In a checkout models, guides and experiments lie beside the package; installed, they lie within it.
if not (Path(__file__).parent / "guides").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

# Before any PyroModule exists: with the global store two modules of one name share their values.
pyro.settings.set(module_local_params=True)

from pyro_metabayes import likelihoods as _likelihoods  # noqa: E402, F401  # registers the families
from pyro_metabayes.backbone import Backbone  # noqa: E402
from pyro_metabayes.episodes import Episodes, Observed, class_means, class_sums, concatenate  # noqa: E402
from pyro_metabayes.errors import UnfamiliarTasks, UsageError  # noqa: E402
from pyro_metabayes.guide import Guide  # noqa: E402
from pyro_metabayes.learner import MetaLearner, Prediction  # noqa: E402
from pyro_metabayes.model import Model  # noqa: E402


def __getattr__(name: str) -> object:
    """FewShotClassifier, whose scikit-learn is imported when it is asked for."""
    if name == "FewShotClassifier":
        from pyro_metabayes.sklearn import FewShotClassifier

        return FewShotClassifier
    raise AttributeError(f"module 'pyro_metabayes' has no attribute '{name}'")


__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Episodes",
    "FewShotClassifier",
    "Guide",
    "MetaLearner",
    "Model",
    "Observed",
    "Prediction",
    "UnfamiliarTasks",
    "UsageError",
    "class_means",
    "class_sums",
    "concatenate",
]
