"""`guide.balance`: what a guide knows about the class marginal of the query set, and predictions that agree with it."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import HasBaseClasses, HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import class_shares
from pyro_metabayes.transductive.sinkhorn import class_term

BALANCES = ("unknown", "known")  # of every guide with this setting
WITH_ESTIMATE = (*BALANCES, "estimated")  # of guides that assign queries in every step


def check_balance(balance: str, model: Model, choices: tuple[str, ...] = BALANCES) -> None:
    """Refuse a balance that is none of the choices, or one that the model cannot represent.

    `known`: the queries of a task are equally many in each class. `estimated`: their shares are estimated. Both add a
    term per class to the logits.
    """
    check_choice("guide.balance", balance, choices)
    if balance != "unknown":
        require_class_term(model, f"guide.balance={balance}")


def require_class_term(model: Model, by: str) -> HasClassTerm:
    """The model, with a head that has a term per class.

    Args:
        model: any model.
        by: the setting that needs it, for the message.

    Raises:
        UsageError: its head has none, or queries may belong to base classes, whose shares nobody knows.
    """
    refuse_base_classes(model, by)
    capable = require(model, HasClassTerm, by)
    if not capable.has_class_term:
        raise UsageError(
            f"expected a head with a term per class for {by}, got one without; use head=cosine_offset or head=linear"
        )
    return capable


def refuse_base_classes(model: Model, by: str) -> None:
    """Refuse a model whose queries may belong to none of the classes of the task."""
    if isinstance(model, HasBaseClasses):
        raise UsageError(
            f"expected queries of the classes of the task only for {by}, got a model with base classes; take "
            "model=few_shot_classifier"
        )


def balanced(balance: str, model: Model, w: Tensor, observed: Observed, start: Tensor | None = None) -> Tensor:
    """w [T, C, W], for `known` with the class term for which the mean prediction of the queries is uniform.

    Args:
        balance: one of BALANCES.
        model: the likelihood.
        w: weights [T, C, W].
        observed: the tasks.
        start: a first guess of the term [T, 1, C].
    """
    if balance != "known":
        return w
    term = class_term(model.outputs(w, observed.query_x), observed.query_mask, start=start)
    return require_class_term(model, "guide.balance=known").with_class_term(w, term.squeeze(-2))


def assign(balance: str, logits: Tensor, mask: Tensor, term: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Assignments softmax(logits + term) [T, Q, C] of the queries, and the class term of the next step [T, 1, C].

    Args:
        balance: one of WITH_ESTIMATE. `unknown`: the term is kept. `known`: it is the one of Sinkhorn's projection of
            these logits. `estimated`: that of the next step is the logarithm of the mean assignment.
        logits: [T, Q, C].
        mask: [T, Q].
        term: the class term of the last step.
        num_iterations: number of Sinkhorn iterations, from the last term.
    """
    if balance == "known":
        term = class_term(logits, mask, num_iterations=num_iterations, start=term)
    assignments = (logits + term).softmax(-1)
    return assignments, class_shares(assignments, mask).log() if balance == "estimated" else term
