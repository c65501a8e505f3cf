"""Settings of pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_metabayes.errors import UsageError, check_choice

CHOICES = {"schedule": ("one_cycle", "steps"), "keep": ("last", "best"), "precision": ("32-true", "bf16-mixed")}


@dataclass
class PretrainSettings:
    """Settings of pretraining: SGD trains the backbone and a cosine classifier over all training classes."""

    epochs: int = 4  # number of passes over the training images
    batch_size: int = 128  # number of images per step
    learning_rate: float = 0.2  # largest learning rate of the schedule
    schedule: str = "one_cycle"  # one_cycle; steps: a linear warm-up, then a factor of 0.1 at each milestone
    warmup: int = 0  # for schedule=steps: number of epochs of the warm-up
    milestones: list[int] = field(default_factory=list)  # for schedule=steps: numbers of epochs before each drop
    momentum: float = 0.9  # Nesterov momentum
    weight_decay: float = 5e-4  # L2 penalty: this factor times the parameters is added to the gradient
    shift: int = 2  # augmentation: largest translation in pixels
    flip: bool = False  # augmentation: horizontal flip with probability 1/2
    jitter: float = 0.0  # augmentation: factors of brightness, contrast and saturation in 1 +- jitter
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), the mixing weight of pairs of images (Zhang et al. 2018); 0: none
    label_smoothing: float = 0.0  # probability mass of the targets that is spread evenly over all classes
    rotation: float = 0.0  # weight of the rotation-prediction loss (Gidaris et al. 2019); 0: none
    average: float = 0.0  # decay of the exponential moving average of the weights that is used as the result; 0: none
    keep: str = "last"  # weights to use: last epoch, or best: the epoch with the best validation accuracy
    precision: str = "32-true"  # number format: 32-true, bf16-mixed (backbone in bfloat16, everything else in float32)
    holdout_per_class: int = 0  # images per training class that are held out to test base classes (model=lwof)
    views: int = 0  # number of augmented copies per training image; training tasks are drawn from these too
    seed: int = 0  # seed of pretraining only, so that runs with different seeds share a backbone

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(f"pretrain.{name}", getattr(self, name), choices)
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.shift < 0:
            raise UsageError(
                "expected pretrain.epochs >= 1, batch_size >= 2, learning_rate > 0 and shift >= 0, got "
                f"{self}; change the setting that is out of range"
            )
        shares = {name: getattr(self, name) for name in ("jitter", "label_smoothing", "average")}
        if min(self.mixup, self.rotation, self.warmup, self.views, self.holdout_per_class) < 0 or not all(
            0 <= share < 1 for share in shares.values()
        ):
            raise UsageError(
                "expected pretrain.mixup, rotation, warmup, views and holdout_per_class >= 0, and pretrain.jitter, "
                "label_smoothing and average at least 0 and less than 1, got "
                f"{self}; change the setting that is out of range"
            )
