"""Class means that are refined by the unlabelled queries: soft k-means, and PT-MAP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_metabayes.episodes import Observed, class_means
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasClassMeans, HasClassTerm, require
from pyro_metabayes.model import Model
from pyro_metabayes.transductive.assignments import soft_class_means
from pyro_metabayes.transductive.balance import assign, balanced, refuse_base_classes

IN_A_STEP = 20  # Sinkhorn iterations, which go on where those of the last step have ended


class Refinement(nn.Module):
    """Weights at class means m^K from unlabelled queries, m^0 the means of the support set:

        z_i = softmax(sharpness * logits(x_i; m^k) + b),    m^{k+1} = m^k + rate (m(z) - m^k),

    m(z) the means of support points and queries weighted by z (`soft_class_means`), logits(x; m) those of the model
    with the weights of class means m. b depends on `balance` (`assign`). The sharpness is learned, since assignments
    and calibrated predictions need other temperatures; the latter is that of the head.

    Args:
        model: a classifier by class means.
        balance: `unknown`, `known` or `estimated`.
        sharpness: before training.

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
        """Weights [T, C, W]: the class term of the predictions is log shares for `estimated`, Sinkhorn's for `known`.

        Args:
            model: the model.
            observed: the tasks.
            num_steps: K.
            rate: of each step.
        """
        at_means, means = require(model, HasClassMeans, "refined class means").at_means, class_means(observed)
        term, mask = means.new_zeros(observed.num_tasks, 1, observed.num_classes), observed.query_mask
        for _ in range(num_steps):
            logits = self.log_sharpness.exp() * model.outputs(at_means(means), observed.query_x)
            assignments, term = assign(self.balance, logits, mask, term, IN_A_STEP)
            means = means + rate * (soft_class_means(observed, assignments) - means)
        if self.balance == "estimated":
            return require(model, HasClassTerm, "guide.balance").with_class_term(at_means(means), term.squeeze(-2))
        return balanced(self.balance, model, at_means(means), observed, term)
