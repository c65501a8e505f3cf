"""PT-MAP without its power transform: class means from balanced assignments of the queries.

Hu, Gripon and Pateux, "Leveraging the Feature Distribution in Transfer-Based Few-Shot Learning", ICANN 2021 (arXiv
2006.03806). For the power transform of the features set backbone=identity backbone.power=0.5.
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import HasClassMeans
from pyro_metabayes.inference.descent import hold_steps
from pyro_metabayes.transductive.balance import WITH_ESTIMATE, check_balance
from pyro_metabayes.transductive.refinement import Refinement


class Guide(pyro_metabayes.Guide):
    """Point estimate at the class means m after K steps that assign the queries to classes by optimal transport.

    q(w | support, x_query) = delta(m^K). Each step of Algorithm 1 is

        P = argmin over transport plans of sum_ic P_ic |x_i - m_c|^2 - entropy(P) / lambda,
        m_c <- m_c + alpha ((sum_{support of c} x_i + sum_query P_ic x_i) / (n_c + sum_query P_ic) - m_c).

    n_c is the number of support points of class c. A plan P gives total mass 1 to each query and equal totals to all
    classes. P is Sinkhorn's projection of softmax(-lambda |x_i - m_c|^2).

    With the linear head, lambda is the scale of the head times the sharpness. The predictions are the plan at m^K, with
    the scale of the head as lambda. So the weights contain a term per class for equal totals.

    Args:
        num_steps: number of steps K.
        step_size: rate alpha at which the class means move.
        learn_step_size: whether alpha is learned. A fixed alpha may be changed at evaluation.
        balance: constraint on the total mass of each class in P.
            `known`: equal totals, as published.
            `unknown`: no constraint.
            `estimated`: the logs of the class shares of the previous step are added to the logits.
        sharpness: lambda divided by the inverse temperature of the predictions, before training. This ratio is learned.

    Raises:
        UsageError: a setting is out of range, or the head has no term per class.
    """

    requires = (HasClassMeans,)
    num_steps: int
    log_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_steps: int = 30,
        step_size: float = 0.2,
        learn_step_size: bool = False,
        balance: str = "known",
        sharpness: float = 1.0,
    ) -> None:
        super().__init__(model)
        check_balance(balance, model, WITH_ESTIMATE)
        self.transductive = num_steps > 0 or balance == "known"
        self.refine = Refinement(model, balance, sharpness)
        hold_steps(self, num_steps, step_size, learn_step_size)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return Delta(self.refine(self.model, observed, self.num_steps, self.log_step_size.exp()), event_dim=2)
