"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_metabayes.errors import UsageError

FEWEST_JOINT = 200  # importance draws of the joint NLL; with fewer, diagnostics cannot tell whether it is reliable


@dataclass
class EvalSettings:
    """Settings of an evaluation (`eval.*` on the command line)."""

    tasks: int = 600  # number of tasks of the evaluation
    samples: int = 30  # draws of w per task; a point estimate needs one
    split: str = "test"  # classes of the tasks: train, val or test
    information: bool = False  # information bounds, from tasks with two query sets: docs/information.md
    joint: bool = False  # joint NLL, which takes minutes where it has no closed form: docs/results.md
    joint_samples: int = 1000  # importance draws per task for the joint NLL
    temperature: bool = False  # scale the predictions of classes by a temperature, fitted on validation tasks
    ensemble: list[str] = field(default_factory=list)  # folders of runs to average with this run, as an ensemble
    number_samples: int = 200  # smallest number of draws if labels are numbers; with fewer, coverage90 is too small

    def __post_init__(self) -> None:
        if self.tasks < 2 or self.samples < 1:
            raise UsageError(
                f"expected eval.tasks >= 2 and eval.samples >= 1, got eval.tasks={self.tasks} and "
                f"eval.samples={self.samples}; increase the setting that is too small"
            )
        if self.number_samples < 1:
            raise UsageError(
                f"expected eval.number_samples >= 1, got {self.number_samples}; increase eval.number_samples"
            )
        if self.joint_samples < FEWEST_JOINT:
            raise UsageError(
                f"expected eval.joint_samples >= {FEWEST_JOINT}, got {self.joint_samples}; increase eval.joint_samples"
            )
        if self.joint and (self.temperature or self.ensemble):
            raise UsageError(
                "expected eval.temperature=false and eval.ensemble=[] for eval.joint=true, got "
                f"eval.temperature={self.temperature} and eval.ensemble={self.ensemble}; set eval.joint=false"
            )

    def draws(self, num_classes: int) -> int:
        """Return the number of draws of w per task; num_classes is 0 if the labels are numbers."""
        return self.samples if num_classes else max(self.samples, self.number_samples)

    @property
    def integrated(self) -> int:
        """Number of importance draws per task for the joint NLL; 0 if eval.joint=false."""
        return self.joint_samples if self.joint else 0
