"""Refinement of class means by unlabelled queries: soft k-means and PT-MAP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasClassMeans, HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import soft_class_means
from pyro_metabayes.transductive.balance import assign, balanced, refuse_base_classes

IN_A_STEP = 20  # Sinkhorn iterations per refinement step; they start from the result of the last step


class Refinement(nn.Module):
    """Refinement of class means by K steps on the unlabelled queries x_i.

    The steps start at the class means m^0 of the support set:

        z_i = softmax(sharpness * logits(x_i; m^k) + b)
        m^{k+1} = m^k + rate (m(z) - m^k)

    where z_i is the soft assignment of query i to the classes, and logits(x; m) are the logits of the model with class
    means m. m(z) are the class means over support points and queries, with the queries weighted by z
    (`soft_class_means`). `balance` determines the class term b (`assign`).

    The sharpness is learned, and not fixed at 1, since the best temperature of the assignments differs from the
    temperature of calibrated predictions.

    Args:
        model: a classifier with class means as weights.
        balance: assumption about the class marginal of the queries: `unknown`, `known` (uniform) or `estimated`.
        sharpness: initial value of the sharpness.

    Raises:
        UsageError: the sharpness is not positive, or the model also predicts base classes of the training.
    """

    def __init__(self, model: Model, balance: str, sharpness: float) -> None:
        super().__init__()
        if sharpness <= 0:
            raise UsageError(f"expected guide.sharpness > 0, got {sharpness}; set guide.sharpness to a positive number")
        refuse_base_classes(model, "refined class means")
        self.balance = balance
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())

    def forward(self, model: Model, observed: Observed, num_steps: int, rate: Tensor | float = 1.0) -> Tensor:
        """Return the weights of the classifier with the refined class means m^K and a class term.

        `balance` determines the class term: the log of the class shares for `estimated`, the class term of Sinkhorn's
        projection for `known`, and no term for `unknown`.

        Args:
            model: the model.
            observed: T tasks with C classes.
            num_steps: number of steps K.
            rate: step size.

        Returns:
            Weights [T, C, W], W numbers per class.
        """
        at_means, means = require(model, HasClassMeans, "refined class means").at_means, class_means(observed)
        soft_means = soft_class_means(observed)
        term, mask = means.new_zeros(observed.num_tasks, 1, observed.num_classes), observed.query_mask
        for _ in range(num_steps):
            logits = self.log_sharpness.exp() * model.outputs(at_means(means), observed.query_x)
            assignments, term = assign(self.balance, logits, mask, term, IN_A_STEP)
            means = means + rate * (soft_means(assignments) - means)
        if self.balance == "estimated":
            return require(model, HasClassTerm, "guide.balance").with_class_term(at_means(means), term.squeeze(-2))
        return balanced(self.balance, model, at_means(means), observed, term)
