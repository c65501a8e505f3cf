"""The meta-learner: backbone, model, guide and objective as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.build import PREFIXES
from pyro_metabayes.deployment.deployable import Deployable
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.guide import Guide
from pyro_metabayes.model import Model
from pyro_metabayes.moved import current_shared_values
from pyro_metabayes.objectives.objective import Objective
from pyro_metabayes.specification.assembly import Assembled
from pyro_metabayes.specification.from_parts import recorded_specification, recorded_values
from pyro_metabayes.specification.parts import Parts, build_parts, check_parts, shared_values
from pyro_metabayes.storage.stored import Stored
from pyro_metabayes.validation.trained_on import TaskRange


class MetaLearner(Assembled, Stored, Deployable):
    """Backbone, model, guide and objective as one torch module, for training and for predictions.

        model = few_shot_classifier.Model(heads.Cosine(), priors.Gaussian(num_weights=640))
        guide = sib.Guide(model, num_classes=5, num_weights=640)
        MetaLearner(identity.Backbone(input_shape=[640]), model, guide, Elbo())

    Args:
        backbone: maps N inputs of shape *X [N, *X] to D features each [N, D].
        model: the prior and the likelihood.
        guide: the approximate posterior in this model.
        objective: the training loss.
        specification: plain values that rebuild the learner (`pyro_metabayes/specification/parts.py`); None: the values
            that the parts recorded when they were constructed.
        frozen: whether the backbone is not trained. If true, Episodes hold features; if false, Episodes hold inputs.

    Attributes:
        trained_on: the range of the training tasks (way, shot, queries); None: not recorded.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Model,
        guide: Guide,
        objective: Objective,
        specification: Mapping[str, Any] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        parts = Parts(backbone, model, guide, objective)
        self._specification = None if specification is None else dict(specification)
        self._shared = recorded_values(parts) if specification is None else shared_values(specification)
        self.backbone, self.model, self.guide, self.objective = parts
        self.model.num_features, self.frozen = self.backbone.num_features, frozen
        self.trained_on: TaskRange | None = None
        self.backbone.requires_grad_(not frozen)
        self.train()

    @property
    def specification(self) -> dict[str, Any]:
        """Plain values that rebuild this learner.

        Raises:
            UsageError: a part was constructed with an argument that is not a plain value, such as a tensor.
        """
        if self._specification is not None:
            return self._specification
        return recorded_specification(Parts(self.backbone, self.model, self.guide, self.objective))

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape *X of one input of the backbone. None stands for an axis of any size."""
        return tuple(self._shared["input_shape"])

    @property
    def num_targets(self) -> int:
        """Number of values Y in one label of a regression; 0 if labels are classes."""
        return int(self._shared.get("num_targets") or 0)

    @classmethod
    def from_specification(
        cls, specification: Mapping[str, Any], frozen: bool = True, prefixes: Sequence[str] = PREFIXES
    ) -> Self:
        """Build a new learner from the specifications of its parts.

        Args:
            specification: plain values (`pyro_metabayes/specification/parts.py`).
            frozen: whether the backbone is not trained.
            prefixes: allowed prefixes of the dotted names that are imported.
        """
        specification = current_shared_values(specification)
        check_parts(specification, prefixes)
        return cls(*build_parts(specification, prefixes), specification, frozen)

    @classmethod
    def of_parts(cls, parts: Parts, frozen: bool) -> Self:
        return cls(*parts, frozen=frozen)

    def forward(self, episodes: Episodes, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """Compute the training loss of a batch of tasks, and the terms of the loss, as means over tasks.

        Args:
            episodes: T tasks with query labels.
            kl_weight: factor of the KL term in the loss.

        Returns:
            Scalars in nats per task:
            `loss`: the loss, to be differentiated.
            `log_likelihood`: the expected log-likelihood.
            `kl`: the KL term, if the objective has one.
            One more entry for each regulariser of model and guide.
        """
        episodes = self.featured(episodes)
        terms = self.objective.terms(self.model, self.guide, episodes, kl_weight=kl_weight)
        parts = {"loss": terms.loss, "log_likelihood": terms.log_likelihood}
        parts |= {} if terms.kl is None else {"kl": terms.kl}
        means = {name: value / episodes.num_tasks for name, value in parts.items()}
        for module in (self.model, self.guide):
            for name, value in module.regulariser(episodes).items():
                means[name] = value.detach().mean()
                means["loss"] = means["loss"] + value.mean()
        return means
