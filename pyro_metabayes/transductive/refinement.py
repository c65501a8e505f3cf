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

IN_A_STEP = 20  # Sinkhorn iterations per step; they continue from the result of the last step


class Refinement(nn.Module):
    """Refines class means by unlabelled queries in K steps, from the means m^0 of the support set:

        z_i = softmax(sharpness * logits(x_i; m^k) + b),    m^{k+1} = m^k + rate (m(z) - m^k).

    m(z) are the means of support points and queries weighted by z (`soft_class_means`). logits(x; m) are those of the
    model with class means m. The class term b depends on `balance` (`assign`). The sharpness is a parameter, since
    assignments need another temperature than calibrated predictions, which have the temperature of the head.

    Args:
        model: a classifier by class means.
        balance: `unknown`, `known` or `estimated`.
        sharpness: initial value of the sharpness.

    Raises:
        UsageError: the sharpness is not positive, or queries may belong to base classes.
    """

    def __init__(self, model: Model, balance: str, sharpness: float) -> None:
        super().__init__()
        if sharpness <= 0:
            raise UsageError(f"expected guide.sharpness > 0, got {sharpness}")
        refuse_base_classes(model, "refined class means")
        self.balance = balance
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())

    def forward(self, model: Model, observed: Observed, num_steps: int, rate: Tensor | float = 1.0) -> Tensor:
        """Weights [T, C, W] of the classifier with the class means m^K.

        For `estimated` its class term is the log of the class shares, for `known` that of Sinkhorn's projection.

        Args:
            model: the model.
            observed: the tasks.
            num_steps: K.
            rate: step size.
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
