"""Bayesian meta-learning in Pyro: one generative model, every inference scheme as a guide."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pyro

# In a checkout models, guides and experiments lie beside the package; installed, they lie within it.
if not (Path(__file__).parent / "guides").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

# Set before any PyroModule exists: in Pyro's global store, two modules of the same name would share their parameters.
pyro.settings.set(module_local_params=True)

from pyro_metabayes import likelihoods as _likelihoods  # noqa: E402, F401  # registers the families
from pyro_metabayes.backbone import Backbone  # noqa: E402
from pyro_metabayes.data.bank import Bank  # noqa: E402
from pyro_metabayes.episodes import Episodes, Observed, class_means, class_sums, concatenate  # noqa: E402
from pyro_metabayes.errors import Interrupted, UnfamiliarTasks, UsageError  # noqa: E402
from pyro_metabayes.guide import Guide  # noqa: E402
from pyro_metabayes.learner import MetaLearner  # noqa: E402
from pyro_metabayes.model import Model  # noqa: E402
from pyro_metabayes.prediction.numbers import NumberPrediction  # noqa: E402
from pyro_metabayes.prediction.probabilities import Prediction  # noqa: E402

if TYPE_CHECKING:
    from pyro_metabayes.evaluation.evaluate import evaluate as evaluate
    from pyro_metabayes.sklearn import FewShotClassifier as FewShotClassifier
    from pyro_metabayes.training.fit import fit as fit

# Imported on first access, since importing scikit-learn and Lightning Fabric takes seconds.
_LATER = {
    "FewShotClassifier": "pyro_metabayes.sklearn",
    "evaluate": "pyro_metabayes.evaluation.evaluate",
    "fit": "pyro_metabayes.training.fit",
}


def __getattr__(name: str) -> object:
    """Import a name of `_LATER` on first access."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'pyro_metabayes' has no attribute '{name}'")


__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Bank",
    "Episodes",
    "FewShotClassifier",
    "Guide",
    "Interrupted",
    "MetaLearner",
    "Model",
    "NumberPrediction",
    "Observed",
    "Prediction",
    "UnfamiliarTasks",
    "UsageError",
    "class_means",
    "class_sums",
    "concatenate",
    "evaluate",
    "fit",
]
