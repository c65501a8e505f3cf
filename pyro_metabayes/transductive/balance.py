"""The setting `guide.balance`: whether the class marginal of the query set is unknown, uniform or estimated."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import HasBaseClasses, HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import class_shares
from pyro_metabayes.transductive.sinkhorn import class_term

BALANCES = ("unknown", "known")  # choices of every guide with this setting
WITH_ESTIMATE = (*BALANCES, "estimated")  # choices of guides that assign queries to classes in every step


def check_balance(balance: str, model: Model, choices: tuple[str, ...] = BALANCES) -> None:
    """Check the setting `guide.balance`, which says what the guide assumes about the class marginal of the queries.

    `unknown` assumes nothing. `known` assumes that the class marginal is uniform. `estimated` estimates the class
    marginal from the queries. `known` and `estimated` add a term per class to the logits.

    Args:
        balance: value of the setting.
        model: the model.
        choices: the values that the guide allows.

    Raises:
        UsageError: the value is none of the choices, or the model has no term per class.
    """
    check_choice("guide.balance", balance, choices)
    if balance != "unknown":
        require_class_term(model, f"guide.balance={balance}")


def require_class_term(model: Model, by: str) -> HasClassTerm:
    """Check that the head of a model has an additive term per class in its logits, and return the model.

    Args:
        model: any model.
        by: the setting that needs the term, for the message.

    Raises:
        UsageError: the head has no such term, or the model also predicts base classes of the training.
    """
    refuse_base_classes(model, by)
    capable = require(model, HasClassTerm, by)
    if not capable.has_class_term:
        raise UsageError(
            f"expected a head with a term per class for {by}, got one without; use head=cosine_offset or head=linear"
        )
    return capable


def refuse_base_classes(model: Model, by: str) -> None:
    """Raise a UsageError if the model also predicts base classes of the training, whose shares are unknown.

    Args:
        model: any model.
        by: the setting that does not allow base classes, for the message.
    """
    if isinstance(model, HasBaseClasses):
        raise UsageError(
            f"expected a model without base classes for {by}, got one with base classes; use model=few_shot_classifier"
        )


def balanced(balance: str, model: Model, w: Tensor, observed: Observed, start: Tensor | None = None) -> Tensor:
    """Return weights for the setting `guide.balance`.

    For `known`, a term is added to the logits of each class so that the mean prediction of the queries is uniform.
    Otherwise the weights are returned unchanged.

    Args:
        balance: value of the setting, `known` or `unknown`.
        model: the model, which computes the logits.
        w: weights [T, C, W]: W numbers for each of C classes of T tasks.
        observed: the tasks.
        start: initial value of the class term [T, 1, C]; None: 0.
    """
    if balance != "known":
        return w
    term = class_term(model.outputs(w, observed.query_x), observed.query_mask, start=start)
    return require_class_term(model, "guide.balance=known").with_class_term(w, term.squeeze(-2))


def assign(balance: str, logits: Tensor, mask: Tensor, term: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Compute soft assignments softmax(logits + term) of the queries, and the class term of the next step.

    Args:
        balance: `unknown`: the term does not change. `known`: the term is computed from `logits` by Sinkhorn's
            projection. `estimated`: the term of the next step is the log of the mean assignment.
        logits: logits of C classes for Q queries of T tasks [T, Q, C].
        mask: [T, Q], False for masked queries.
        term: class term of the last step [T, 1, C].
        num_iterations: number of Sinkhorn iterations, which start at `term`.

    Returns:
        The assignments [T, Q, C], and the class term of the next step [T, 1, C].
    """
    if balance == "known":
        term = class_term(logits, mask, num_iterations=num_iterations, start=term)
    assignments = (logits + term).softmax(-1)
    return assignments, class_shares(assignments, mask).log() if balance == "estimated" else term
