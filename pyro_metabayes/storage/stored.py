"""A learner that is saved to a file and loaded from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from pyro_metabayes.build import PREFIXES
from pyro_metabayes.errors import UsageError
from pyro_metabayes.pretrained.files import pretrained_file
from pyro_metabayes.seeding import drawing, noise_of
from pyro_metabayes.specification.from_parts import refuse_what_cannot_be_rebuilt
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.allowance import Allowance
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import expecting
from pyro_metabayes.storage.weights import current_weights, refuse_other_weights, saved_learner, weights_follow
from pyro_metabayes.validation.trained_on import TaskRange


class Stored(nn.Module):
    """A learner with a specification.

    Attributes:
        frozen: whether the backbone is not trained.
        trained_on: the range of the training tasks; None: not recorded.
    """

    frozen: bool
    trained_on: TaskRange | None

    @property
    def specification(self) -> dict[str, Any]:
        """Plain values that rebuild the learner."""
        raise NotImplementedError

    @classmethod
    def from_specification(
        cls, specification: Mapping[str, Any], frozen: bool = True, prefixes: Sequence[str] = PREFIXES
    ) -> Self:
        """A learner with fresh weights."""
        raise NotImplementedError

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
        return cls._of_file(user_path(path), prefixes, into, {})

    @classmethod
    def pretrained(cls, name: str = "transductive", **settings: Any) -> Self:
        """A learner that ships, for features of any origin, dimension, way and shot (docs/any-embeddings.md).

            MetaLearner.pretrained("transductive", balance="known")

        Args:
            name: `transductive`, whose predictions depend on the whole query set, or `inductive`.
            settings: of its guide, which replace those of the file.

        Raises:
            UsageError: another name, or a setting that the guide does not have.
        """
        return cls._of_file(pretrained_file(name), (), None, settings)

    @classmethod
    def _of_file(cls, path: Path, prefixes: Sequence[str], into: Self | None, settings: Mapping[str, Any]) -> Self:
        """As `load`, with settings of the guide that replace those of the file."""
        saved = saved_learner(path, rebuild=into is None)
        with expecting(f"a learner of this package at {path}"), noise_of(0), drawing():  # fresh weights
            if into is None:
                with Allowance.of_file(checkpoint.file_of(path)):
                    into = cls._restored(_with_guide(saved, settings), prefixes)
            into.load_weights(saved["weights"])
            into.trained_on = TaskRange.restored(saved.get("trained_on"))
        return into

    @classmethod
    def _restored(cls, saved: Mapping[str, Any], prefixes: Sequence[str]) -> Self:
        with weights_follow():
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


def _with_guide(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The saved learner with other settings of its guide."""
    if not settings:
        return saved
    specification = saved["specification"]
    return {**saved, "specification": specification | {"guide": specification["guide"] | settings}}
