"""The setting `guide.balance`: the assumption about the class marginal of the query set."""

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
    """Check the setting `guide.balance`, the assumption about the class marginal of the queries.

        unknown: no assumption.
        known: the class marginal is uniform.
        estimated: the class marginal is estimated from the queries.

    `known` and `estimated` add a term per class to the logits, so they need a head with such a term.

    Args:
        balance: value of the setting.
        model: the model.
        choices: the allowed values.

    Raises:
        UsageError: the value is not one of the choices, or `known` or `estimated` needs a term that the model lacks.
    """
    check_choice("guide.balance", balance, choices)
    if balance != "unknown":
        require_class_term(model, f"guide.balance={balance}")


def require_class_term(model: Model, by: str) -> HasClassTerm:
    """Check that the logits of a model have an additive term per class, and return the model.

    Args:
        model: any model.
        by: the setting that needs the term, for the message.

    Raises:
        UsageError: the logits have no such term, or the model also predicts base classes of the training.
    """
    refuse_base_classes(model, by)
    capable = require(model, HasClassTerm, by)
    if not capable.has_class_term:
        raise UsageError(
            f"expected a head with a term per class for {by}, got a head without a term; use head=cosine_offset or "
            "head=linear"
        )
    return capable


def refuse_base_classes(model: Model, by: str) -> None:
    """Raise a UsageError if the model also predicts base classes of the training, which have unknown shares.

    Args:
        model: any model.
        by: the setting that does not allow base classes, for the message.
    """
    if isinstance(model, HasBaseClasses):
        raise UsageError(
            f"expected a model without base classes for {by}, got a model with base classes; use "
            "model=few_shot_classifier"
        )


def refuse_few_queries(observed: Observed) -> None:
    """Raise a UsageError if tasks have fewer queries than classes, since equally many per class are then impossible."""
    if (number := observed.query_x.shape[1]) < observed.num_classes:
        raise UsageError(
            f"expected at least {observed.num_classes} queries for balance=known (equally many per class), got "
            f"{number}; predict all queries in one call, or remove the setting balance"
        )


def balanced(balance: str, model: Model, w: Tensor, observed: Observed, start: Tensor | None = None) -> Tensor:
    """Return weights for the setting `guide.balance`.

    `known` adds a term to the logits of each class, such that the mean prediction of the queries is uniform. `unknown`
    returns the weights unchanged.

    Args:
        balance: value of the setting, `known` or `unknown`.
        model: the model that computes the logits.
        w: [T, C, W], W weights for each of C classes of T tasks.
        observed: the tasks.
        start: [T, 1, C], initial value of the class term; None: 0.
    """
    if balance != "known":
        return w
    term = class_term(model.outputs(w, observed.query_x), observed.query_mask, start=start)
    return require_class_term(model, "guide.balance=known").with_class_term(w, term.squeeze(-2))


def assign(balance: str, logits: Tensor, mask: Tensor, term: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Compute soft assignments softmax(logits + term) of the queries, and the class term of the next step.

    Args:
        balance: the setting `guide.balance`.
            unknown: `term` is used, and returned unchanged.
            known: Sinkhorn's projection computes a new term from `logits`. The new term is used and returned.
            estimated: `term` is used. The returned term is the log of the mean assignment.
        logits: [T, Q, C], logits of C classes for Q queries of T tasks.
        mask: [T, Q], False for masked queries.
        term: [T, 1, C], class term of the last step.
        num_iterations: number of Sinkhorn iterations, which start at `term`.

    Returns:
        The assignments [T, Q, C], and the class term [T, 1, C] to pass as `term` in the next step.
    """
    if balance == "known":
        term = class_term(logits, mask, num_iterations=num_iterations, start=term)
    assignments = (logits + term).softmax(-1)
    return assignments, class_shares(assignments, mask).log() if balance == "estimated" else term
