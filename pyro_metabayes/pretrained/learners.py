"""Learners by name or file."""

from __future__ import annotations

import functools
from os import PathLike, fspath

from pyro_metabayes.errors import UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretrained.files import CHECKSUMS
from pyro_metabayes.storage.paths import user_path


@functools.lru_cache(maxsize=8)
def shipped(name: str, balance: str | None) -> MetaLearner:
    """A learner that ships, read once per process: it has no state that a prediction changes."""
    settings = {} if balance is None else {"balance": balance}
    return MetaLearner.pretrained(name, **settings).double().eval()


def loaded(learner: MetaLearner | str | PathLike[str] | None) -> MetaLearner:
    """The learner itself, or that of a file or of the folder of a run.

    Raises:
        UsageError: a value of another type, or a path without a learner.
    """
    if isinstance(learner, MetaLearner):
        return learner
    if not isinstance(learner, str | PathLike):
        kind = type(learner).__name__
        raise UsageError(
            f"expected learner to be {', '.join(CHECKSUMS)}, a MetaLearner, the folder of a run or None, got a value "
            f"of type {kind}"
        )
    if not (path := user_path(fspath(learner))).exists():
        raise UsageError(
            f"expected learner to be {', '.join(CHECKSUMS)}, or a file or folder that exists, got '{learner}'; "
            "fix the name"
        )
    return MetaLearner.load(path)
