"""The optimiser of pretraining, the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_metabayes.pretraining.settings import PretrainSettings


def average_of(network: nn.Module, settings: PretrainSettings) -> AveragedModel | None:
    """Construct an exponential moving average of the weights with decay settings.average; None if the decay is 0."""
    if not settings.average:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True)


def optimizer_of(network: nn.Module, settings: PretrainSettings, steps_per_epoch: int) -> tuple[Optimizer, LRScheduler]:
    """Construct SGD and a learning-rate schedule.

    The schedule is one_cycle, or a linear warm-up and then a factor 0.1 at each of settings.milestones.
    """
    optimizer = SGD(
        network.parameters(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    if settings.schedule == "one_cycle":
        num_steps = settings.epochs * steps_per_epoch
        return optimizer, OneCycleLR(optimizer, settings.learning_rate, num_steps, pct_start=0.3)
    warmup, milestones = settings.warmup * steps_per_epoch, [epoch * steps_per_epoch for epoch in settings.milestones]

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return warm * 0.1 ** sum(step >= milestone for milestone in milestones)

    return optimizer, LambdaLR(optimizer, factor)
