"""Loading of learners: pretrained learners by name, other learners by file or folder."""

from __future__ import annotations

import functools
from os import PathLike, fspath

from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretrained.files import CHECKSUMS
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.transductive.balance import BALANCES


@functools.lru_cache(maxsize=8)
def shipped(name: str, balance: str | None) -> MetaLearner:
    """Load a pretrained learner in float64. The guide of `transductive` computes in float32, in half the time.

    The learner is read once per process. All callers share it, since predictions do not change it.

    Args:
        name: `transductive` or `inductive`.
        balance: value of the setting `balance` of the guide; None: the value in the file.

    Raises:
        UsageError: the guide has no such balance.
    """
    if balance is not None:
        check_choice("balance", balance, BALANCES)
    settings = {} if balance is None else {"balance": balance}
    learner = MetaLearner.pretrained(name, **settings).double().eval()
    if learner.guide.transductive:
        learner.guide.float()
    return learner


def loaded(learner: MetaLearner | str | PathLike[str] | None) -> MetaLearner:
    """Return a MetaLearner: `learner` itself, or the learner in the file or run folder of this name.

    Raises:
        UsageError: the argument is not a learner or a path, or there is no learner at the path.
    """
    if isinstance(learner, MetaLearner):
        return learner
    if not isinstance(learner, str | PathLike):
        kind = type(learner).__name__
        raise UsageError(
            f"expected learner to be one of {', '.join(CHECKSUMS)}, a MetaLearner, the folder of a run or None, got a "
            f"value of type {kind}; pass one of these"
        )
    if not (path := user_path(fspath(learner))).exists():
        raise UsageError(
            f"expected learner to be one of {', '.join(CHECKSUMS)}, or a file or folder that exists, got '{learner}'; "
            "fix the name"
        )
    return MetaLearner.load(path)
