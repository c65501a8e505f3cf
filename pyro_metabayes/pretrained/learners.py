"""Loading of learners: pretrained learners by name, other learners by file or folder."""

from __future__ import annotations

import functools
from os import PathLike, fspath

from pyro_metabayes.errors import UsageError, similar_choice
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretrained.files import CHECKSUMS
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.transductive.balance import BALANCES


def ships(learner: object) -> bool:
    """Return whether the argument `learner` of a classifier names a pretrained learner of the package."""
    return isinstance(learner, str) and learner in CHECKSUMS


def chosen(learner: MetaLearner | str | PathLike[str] | None, balance: str | None) -> MetaLearner:
    """Return the learner that the arguments `learner` and `balance` of a classifier name.

    Args:
        learner: name of a pretrained learner, a MetaLearner, or the file or run folder of a learner.
        balance: value of the setting `balance` of the guide of `transductive`; None: the value in the file.

    Raises:
        UsageError: there is no such learner or balance, or the learner has no setting `balance`.
    """
    refuse_balance(learner, balance)
    if balance is not None and balance not in BALANCES:
        meant = "did you mean 'known'?" if balance is True else similar_choice(balance, BALANCES)
        raise UsageError(
            "expected balance='known' (each call has equally many queries of every class) or None, the default (class "
            f"frequencies are estimated), got {balance!r}; {meant or 'remove balance or set one of these'}"
        )
    return _shipped(str(learner), balance) if ships(learner) else _loaded(learner)


def refuse_balance(learner: object, balance: str | None) -> None:
    """Raise a UsageError if a balance is given for a learner without this setting."""
    if balance is not None and not (isinstance(learner, str) and learner == "transductive"):
        got = f"'{learner}'" if isinstance(learner, str) else "another learner"
        raise UsageError(
            f"expected learner='transductive' for balance={balance!r}, got {got}; remove balance, or set "
            "learner='transductive'"
        )


@functools.lru_cache(maxsize=8)
def _shipped(name: str, balance: str | None) -> MetaLearner:
    """Load a pretrained learner in float64. The guide of `transductive` computes in float32, in less time.

    The learner is read once per process. All callers share it, since predictions do not change it.
    """
    settings = {} if balance is None else {"balance": balance}
    learner = MetaLearner.pretrained(name, **settings).double().eval()
    if learner.guide.transductive:
        learner.guide.float()
    return learner


def _loaded(learner: object) -> MetaLearner:
    """Return a MetaLearner: `learner` itself, or the learner in the file or run folder of this name."""
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
            f"{similar_choice(learner, CHECKSUMS) or 'fix the name'}"
        )
    return MetaLearner.load(path)
