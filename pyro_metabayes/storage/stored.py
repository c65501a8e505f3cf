"""Saving of learners to files, and loading of learners from files."""

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
    """Base class of a learner that can be saved and loaded.

    Attributes:
        frozen: whether the backbone is not trained.
        trained_on: range of way, shot and number of queries of the training tasks; None: not recorded.
    """

    frozen: bool
    trained_on: TaskRange | None

    @property
    def specification(self) -> dict[str, Any]:
        """Plain values (numbers, text, lists) from which `from_specification` rebuilds the learner."""
        raise NotImplementedError

    @classmethod
    def from_specification(
        cls, specification: Mapping[str, Any], frozen: bool = True, prefixes: Sequence[str] = PREFIXES
    ) -> Self:
        """Build a learner with newly initialised weights.

        Args:
            specification: class and settings of each part, and values shared by several parts.
            frozen: whether the backbone is not trained.
            prefixes: prefixes of the class names that may be imported.
        """
        raise NotImplementedError

    def save(self, path: Path | str, weights_only: bool = False) -> None:
        """Save the learner to a file that `load` reads.

        Args:
            path: the file.
            weights_only: whether to omit the specification. `load` then needs the argument `into`.

        Raises:
            UsageError: `load` could not rebuild a part from its settings.
        """
        if not weights_only:
            refuse_what_cannot_be_rebuilt(self, self._restored)
        saved = self.portable()
        checkpoint.save(user_path(path), {"learner": saved | {"specification": None} if weights_only else saved})

    def portable(self) -> dict[str, Any]:
        """Return weights and specification as tensors and plain values, the content of a file that `load` reads.

        The specification is None if a part has a constructor argument that is not a plain value.
        """
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
            path: a file that `save` wrote, or the folder of a run. From a folder, the best learner is loaded.
            prefixes: further prefixes of class names that may be imported. Names that start with models., guides. or
                pyro_metabayes. are always allowed.
            into: a learner that receives the weights and was constructed like the saved learner. None: build a new
                learner from the specification in the file.

        Raises:
            UsageError: there is no such file, it holds no learner, or the learner differs from `into`.
        """
        return cls._of_file(user_path(path), prefixes, into, {})

    @classmethod
    def pretrained(cls, name: str = "transductive", **settings: Any) -> Self:
        """Load a pretrained learner of the package, for features of any kind and size, and any way and shot.

            MetaLearner.pretrained("transductive", balance="known")

        How these learners were trained: docs/any-embeddings.md.

        Args:
            name: `transductive` (predictions depend on the whole query set) or `inductive`.
            settings: settings of the guide that replace the settings in the file.

        Raises:
            UsageError: `name` or the name of a setting is unknown.
        """
        return cls._of_file(pretrained_file(name), (), None, settings)

    @classmethod
    def _of_file(cls, path: Path, prefixes: Sequence[str], into: Self | None, settings: Mapping[str, Any]) -> Self:
        """Load a learner like `load`; the `settings` replace settings of the guide in the file."""
        saved = saved_learner(path, rebuild=into is None)
        # Initial weights, which are then replaced, are drawn without torch's global random numbers.
        with expecting(f"a learner of this package at {path}"), noise_of(0), drawing():
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
        """Load a state_dict. Names of weights from earlier versions are translated to current names.

        Raises:
            UsageError: the names or shapes of the weights differ from those of this learner.
        """
        self.refuse_other(weights)
        self.load_state_dict(current_weights(self, weights))

    def refuse_other(self, weights: Mapping[str, Tensor]) -> None:
        """Raise a UsageError if the names or shapes of `weights` differ from those of this learner."""
        refuse_other_weights(self, weights)


def _with_guide(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of a file of a learner, with some settings of the guide replaced."""
    if not settings:
        return saved
    specification = saved["specification"]
    return {**saved, "specification": specification | {"guide": specification["guide"] | settings}}
