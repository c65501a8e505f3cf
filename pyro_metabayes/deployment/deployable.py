"""The methods `task` and `export` of a learner, for predictions outside training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pyro_metabayes.deployment.class_names import classes_of
from pyro_metabayes.deployment.encoded_support import EncodedSupport
from pyro_metabayes.deployment.export import check_file, check_input_shape, exported_program, write_program
from pyro_metabayes.deployment.tasks import ClassTask, NumberTask
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.prediction.arrays import SupportSet
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.prediction.probabilities import check_num_samples
from pyro_metabayes.prediction.tensors import Array, tensor_of
from pyro_metabayes.seeding import check_seed
from pyro_metabayes.storage.paths import user_path


class Deployable(Predicts):
    """A learner with the methods `task`, which encodes a support set once, and `export`, which writes a program."""

    @torch.no_grad()
    def task(self, support_x: Array, support_y: Any, num_samples: int = 100, seed: int = 0) -> ClassTask | NumberTask:
        """Encode a support set once, and return a task that predicts any number of query sets.

            task = learner.task(support_x, names)
            task.predict(query_x)        # names
            task.predict_proba(query_x)  # [Q, C], columns in the order of task.classes

        With an inductive guide, this call computes the posterior. With a transductive guide, every prediction computes
        the posterior anew from the queries of the call.

        Predictions equal those of `predict` with the same num_samples and seed. Make a new task after further training.

        Args:
            support_x: inputs of S support points [S, *X], as in `predict`.
            support_y: class names [S], text or integers, of at least two classes. In a regression: numbers [S], or
                [S, Y] for Y numbers per point.
            num_samples: number of draws of the task weights w; unused if predictions have a closed form.
            seed: seed of the draws.

        Returns:
            A ClassTask, or a NumberTask in a regression.

        Raises:
            UsageError: an array is not suitable for the learner.
        """
        check_num_samples(num_samples)
        check_seed(seed)
        settings = self.input_shape, self.backbone, next(self.parameters(), torch.empty(0)), self.num_targets
        if self.num_targets:
            return NumberTask(
                self, EncodedSupport(self, SupportSet(support_x, support_y, *settings), num_samples, seed)
            )
        if isinstance(self.model, HasBaseClasses):
            raise UsageError(
                "expected a learner that predicts only the classes of the support set, got a learner that also "
                "predicts base classes; use MetaLearner.predict"
            )
        classes, places = classes_of(support_y, tensor_of("support_x", support_x).shape[:1].numel())
        support = SupportSet(support_x, places, *settings)
        return ClassTask(self, EncodedSupport(self, support, num_samples, seed), classes)

    def export(
        self,
        path: Path | str,
        num_classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        num_samples: int = 100,
        seed: int = 0,
    ) -> ExportedProgram:
        """Export `predict` to a file that runs without this package, for any number of support and query points.

            learner.export("few_shot.pt2", num_classes=5)
            probabilities, spread = torch.export.load("few_shot.pt2").module()(support_x, support_y, query_x)

        Inputs of the program, for S support points and Q queries:
            support_x [S, *X] and query_x [Q, *X], in the dtype of the learner,
            support_y: int64 classes 0 to C - 1 [S], or Y numbers per point [S, Y].
        The outputs are the fields of the prediction. The program does not check inputs. Probabilities are NaN if a
        class has no support point. With a transductive guide, predictions depend on the whole query set.

        The export fixes the number of classes C, the input shape *X and the random draws. The draws are those of
        `predict` with the same seed.

        Args:
            path: a file NAME.pt2, or NAME.onnx with the extra `onnx` (pip install 'pyro_metabayes[onnx]').
            num_classes: C. None: 0 in a regression, else the number of classes of a guide that fixes this number.
            input_shape: *X. None: the input shape of the learner, if the size of each axis is fixed.
            num_samples: number of draws of the task weights w; unused if predictions have a closed form.
            seed: seed of the draws.

        Returns:
            The exported program, which is also in the file.

        Raises:
            UsageError: an argument is invalid, torch cannot trace the learner, or ONNX lacks an operator. No file is
                then written.
        """
        check_num_samples(num_samples)
        check_seed(seed)
        file = user_path(path)
        check_file(file)
        classes = self._classes_to_export(num_classes)
        program = exported_program(self, classes, check_input_shape(self.input_shape, input_shape), num_samples, seed)
        write_program(program, file)
        return program

    def _classes_to_export(self, chosen: int | None) -> int:
        """Return the number of classes of the exported program; 0 in a regression."""
        if self.num_targets:
            if chosen:
                raise UsageError(f"expected no num_classes for a regression, got {chosen!r}; leave it out")
            return 0
        classes = self.guide.num_classes if chosen is None else chosen
        if type(classes) is not int or classes < 2:
            raise UsageError(
                f"expected num_classes to be an integer >= 2, got {chosen!r}; pass the number of classes of the "
                "exported program, for example num_classes=5"
            )
        return classes
