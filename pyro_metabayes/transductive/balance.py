"""`guide.balance`: whether the class marginal of the query set is known, and predictions that agree with it."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import HasBaseClasses, HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import class_shares
from pyro_metabayes.transductive.sinkhorn import class_term

BALANCES = ("unknown", "known")  # choices of every guide with this setting
WITH_ESTIMATE = (*BALANCES, "estimated")  # choices of guides that assign queries in every step


def check_balance(balance: str, model: Model, choices: tuple[str, ...] = BALANCES) -> None:
    """Check the setting `guide.balance`.

    `known`: the query set of a task is balanced. `estimated`: the class shares of the queries are estimated. Both add a
    term per class to the logits.

    Args:
        balance: the setting.
        model: the model.
        choices: the values that the guide allows.

    Raises:
        UsageError: the value is none of the choices, or the model has no term per class.
    """
    check_choice("guide.balance", balance, choices)
    if balance != "unknown":
        require_class_term(model, f"guide.balance={balance}")


def require_class_term(model: Model, by: str) -> HasClassTerm:
    """The model, with a head that has a term per class.

    Args:
        model: any model.
        by: the setting that needs the term, for the message.

    Raises:
        UsageError: the head has no such term, or queries may belong to base classes, whose shares are unknown.
    """
    refuse_base_classes(model, by)
    capable = require(model, HasClassTerm, by)
    if not capable.has_class_term:
        raise UsageError(
            f"expected a head with a term per class for {by}, got one without; use head=cosine_offset or head=linear"
        )
    return capable


def refuse_base_classes(model: Model, by: str) -> None:
    """Raise a UsageError for a model with base classes, whose queries may belong to no class of the task."""
    if isinstance(model, HasBaseClasses):
        raise UsageError(
            f"expected a model without base classes for {by}, got one with base classes; use model=few_shot_classifier"
        )


def balanced(balance: str, model: Model, w: Tensor, observed: Observed, start: Tensor | None = None) -> Tensor:
    """w [T, C, W]; for `known`, with the class term that makes the mean prediction of the queries uniform.

    Args:
        balance: one of BALANCES.
        model: the likelihood.
        w: weights [T, C, W].
        observed: the tasks.
        start: initial value of the class term [T, 1, C]; None: 0.
    """
    if balance != "known":
        return w
    term = class_term(model.outputs(w, observed.query_x), observed.query_mask, start=start)
    return require_class_term(model, "guide.balance=known").with_class_term(w, term.squeeze(-2))


def assign(balance: str, logits: Tensor, mask: Tensor, term: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Assignments softmax(logits + term) [T, Q, C] of the queries, and the class term of the next step [T, 1, C].

    Args:
        balance: one of WITH_ESTIMATE. `unknown`: the term does not change. `known`: the term is that of Sinkhorn's
            projection of these logits. `estimated`: the term of the next step is the log of the mean assignment.
        logits: [T, Q, C].
        mask: [T, Q].
        term: the class term of the last step [T, 1, C].
        num_iterations: number of Sinkhorn iterations, which start at `term`.
    """
    if balance == "known":
        term = class_term(logits, mask, num_iterations=num_iterations, start=term)
    assignments = (logits + term).softmax(-1)
    return assignments, class_shares(assignments, mask).log() if balance == "estimated" else term
