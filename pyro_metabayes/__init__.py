"""Bayesian meta-learning in Pyro: one generative model, every inference scheme as a guide."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# In a checkout, the folders models, guides and experiments are beside the package; once installed, they are inside it.
if not (Path(__file__).parent / "guides").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from pyro_metabayes.backbone import Backbone as Backbone
    from pyro_metabayes.data.bank import Bank as Bank
    from pyro_metabayes.episodes import Episodes as Episodes
    from pyro_metabayes.episodes import Observed as Observed
    from pyro_metabayes.episodes import class_means as class_means
    from pyro_metabayes.episodes import class_sums as class_sums
    from pyro_metabayes.episodes import concatenate as concatenate
    from pyro_metabayes.errors import Interrupted as Interrupted
    from pyro_metabayes.errors import UnfamiliarTasks as UnfamiliarTasks
    from pyro_metabayes.errors import UsageError as UsageError
    from pyro_metabayes.evaluation.evaluate import evaluate as evaluate
    from pyro_metabayes.guide import Guide as Guide
    from pyro_metabayes.learner import MetaLearner as MetaLearner
    from pyro_metabayes.model import Model as Model
    from pyro_metabayes.prediction.numbers import NumberPrediction as NumberPrediction
    from pyro_metabayes.prediction.probabilities import Prediction as Prediction
    from pyro_metabayes.sklearn import FewShotClassifier as FewShotClassifier
    from pyro_metabayes.training.fit import fit as fit

# The module of each public name. It is imported when the name is first used, since importing torch and Pyro takes a
# second, and `metabayes --help` needs neither.
_MODULES = {
    "Backbone": "backbone",
    "Bank": "data.bank",
    "Episodes": "episodes",
    "FewShotClassifier": "sklearn",
    "Guide": "guide",
    "Interrupted": "errors",
    "MetaLearner": "learner",
    "Model": "model",
    "NumberPrediction": "prediction.numbers",
    "Observed": "episodes",
    "Prediction": "prediction.probabilities",
    "UnfamiliarTasks": "errors",
    "UsageError": "errors",
    "class_means": "episodes",
    "class_sums": "episodes",
    "concatenate": "episodes",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
}


def __getattr__(name: str) -> object:
    """Import and return a public object or a module of this package when it is first used."""
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise  # the module exists; a package that it imports does not
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "pyro" in sys.modules:  # the program may construct Pyro modules before it uses a name of this package
    import_module(f"{__name__}.handlers.parameters")  # changes pyro.settings, which must come before the first module

__version__ = "0.2.0"
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
