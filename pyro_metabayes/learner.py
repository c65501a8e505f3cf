"""The meta-learner: backbone, model, guide and objective as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.build import PREFIXES
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.guide import Guide
from pyro_metabayes.model import Model
from pyro_metabayes.moved import current_shared_values
from pyro_metabayes.objectives.objective import Objective
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.seeding import drawing, noise_of
from pyro_metabayes.specification.assembly import Assembled
from pyro_metabayes.specification.from_parts import (
    recorded_specification,
    recorded_values,
    refuse_what_cannot_be_rebuilt,
)
from pyro_metabayes.specification.parts import Parts, build_parts, check_parts, shared_values
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.allowance import Allowance
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import expecting
from pyro_metabayes.storage.weights import current_weights, refuse_other_weights, saved_learner
from pyro_metabayes.validation.trained_on import TaskRange


class MetaLearner(Assembled, Predicts):
    """Backbone, model, guide and objective as one torch module, for training and for predictions.

        model = few_shot_classifier.Model(heads.Cosine(), priors.Gaussian(num_weights=640))
        guide = sib.Guide(model, num_classes=5, num_weights=640)
        MetaLearner(identity.Backbone(input_shape=[640]), model, guide, Elbo())

    Args:
        backbone: maps inputs [N, *X] to features [N, D].
        model: the prior and the likelihood.
        guide: the approximate posterior in this model.
        objective: the training loss.
        specification: plain values that rebuild the learner (`pyro_metabayes/specification/parts.py`); None: the
            values that the parts recorded when they were constructed.
        frozen: whether the backbone is not trained. Episodes then hold features, otherwise inputs of the backbone.

    Attributes:
        trained_on: the range of the training tasks, which a checkpoint keeps; None: not recorded.
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
            UsageError: a part was constructed with an argument that is no plain value.
        """
        if self._specification is not None:
            return self._specification
        return recorded_specification(Parts(self.backbone, self.model, self.guide, self.objective))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """*X, the shape of one input of the backbone."""
        return tuple(self._shared["input_shape"])

    @property
    def num_targets(self) -> int:
        """Y, the number of values in one label of a regression; 0 if labels are classes."""
        return int(self._shared.get("num_targets") or 0)

    @classmethod
    def from_specification(
        cls, specification: Mapping[str, Any], frozen: bool = True, prefixes: Sequence[str] = PREFIXES
    ) -> Self:
        """A new learner from the specifications of its parts.

        Args:
            specification: plain values (`pyro_metabayes/specification/parts.py`).
            frozen: whether the backbone is not trained.
            prefixes: prefixes of the names that may be imported.
        """
        specification = current_shared_values(specification)
        check_parts(specification, prefixes)
        return cls(*build_parts(specification, prefixes), specification, frozen)

    @classmethod
    def of_parts(cls, parts: Parts, frozen: bool) -> Self:
        return cls(*parts, frozen=frozen)

    def forward(self, episodes: Episodes, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """Means over tasks, in nats per task: `loss`, to be differentiated, and the terms of the loss."""
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

    def save(self, path: Path | str, weights_only: bool = False) -> None:
        """Save the learner to a file that `load` reads.

        Args:
            path: the file.
            weights_only: whether to omit the specification; `load` then needs the argument `into`.

        Raises:
            UsageError: `load` could not rebuild a part.
        """
        if not weights_only:
            refuse_what_cannot_be_rebuilt(self, self._restored)
        saved = self.portable()
        checkpoint.save(user_path(path), {"learner": saved | {"specification": None} if weights_only else saved})

    def portable(self) -> dict[str, Any]:
        """The weights and the specification, which is None if a part has an argument that is no plain value."""
        specification: dict[str, Any] | None = None
        with suppress(UsageError):
            specification = self.specification
        return {
            "specification": specification,
            "frozen": self.frozen,
            "trained_on": None if self.trained_on is None else asdict(self.trained_on),
            "weights": {name: value.detach().clone() for name, value in self.state_dict().items()},
        }

    @classmethod
    def load(cls, path: Path | str, prefixes: Sequence[str] = (), into: Self | None = None) -> Self:
        """Load a learner.

        Args:
            path: the folder of a run, whose best checkpoint is read, or a file that `save` wrote.
            prefixes: further prefixes of names that may be imported, beside models., guides. and pyro_metabayes.
            into: a learner that receives the weights, constructed like the saved one; None: build a new learner from
                the specification in the file.
        """
        saved = saved_learner(path := user_path(path), rebuild=into is None)
        with expecting(f"a learner of this package at {path}"), noise_of(0), drawing():  # fresh weights
            if into is None:
                with Allowance.of_file(checkpoint.file_of(path)):
                    into = cls._restored(saved, prefixes)
            into.load_weights(saved["weights"])
            into.trained_on = TaskRange.restored(saved.get("trained_on"))
        return into

    @classmethod
    def _restored(cls, saved: Mapping[str, Any], prefixes: Sequence[str]) -> Self:
        return cls.from_specification(saved["specification"], bool(saved["frozen"]), (*PREFIXES, *prefixes))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load a state_dict; names of earlier versions are translated.

        Raises:
            UsageError: a weight of another name or shape.
        """
        self.refuse_other(weights)
        self.load_state_dict(current_weights(self, weights))

    def refuse_other(self, weights: Mapping[str, Tensor]) -> None:
        """Raise a UsageError if names or shapes differ from the weights of this learner."""
        refuse_other_weights(self, weights)
