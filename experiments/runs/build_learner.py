"""Builds the learner of a configuration: initial weights, pretrained backbone, and weights of known classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.base_novel import BaseNovelSampler
from pyro_metabayes.data.holdout import held_out_rows, without_rows
from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.stream import Source, context_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.grouped_data import check_groups, has_independent_effects
from pyro_metabayes.inference.capabilities import StartsAtEstimates
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.features import EmbedsTasks
from pyro_metabayes.pretraining import embed_bank, features_under, pretrain

PIECE = 2**14  # number of inputs that are read at a time


@runtime_checkable
class StartsAtClasses(Protocol):
    """Model or guide with a fixed set of classes, whose classifier weights can be set before training."""

    def start_at_classes(self, weights: Tensor) -> None:
        """Set the classifier weights of the known classes to weights [classes, features] of a cosine classifier."""


@runtime_checkable
class TransformsFeatures(Protocol):
    """Backbone without parameters that transforms features, such as by a power or by centring."""

    @property
    def transforms(self) -> bool:
        """Whether the backbone changes more than the scale of the features."""

    def centre_on(self, batches: Iterable[Tensor]) -> None:
        """Compute the mean to subtract, from all training inputs in batches [inputs, features]."""


def build_learner(config: Config, data: Bank | Source, source: Source, num_classes: int | None = None) -> MetaLearner:
    """Build a learner with untrained weights.

    Args:
        config: the configuration of the run.
        data: the data set or simulator, as loaded.
        source: the task sampler that is made from the data.
        num_classes: number of classes that the learner is built for. None: the way of the tasks; in a regression the
            number of outputs.

    Raises:
        UsageError: the data lack something that the model, the guide or the backbone needs.
    """
    specification = config.specification() | {
        "input_shape": list(source.input_shape),
        "num_classes": num_classes or source.num_targets or config.task.way,
        "num_targets": source.num_targets,
        "particles": config.train.particles,
        **context_of(source),
    }
    torch.manual_seed(config.seed)
    learner = MetaLearner.from_specification(specification, config.frozen)
    _refuse_base_classes_without_model(config, learner, source)
    _refuse_tasks_without_shared_classes(config, learner, data)
    _refuse_transforms_without_bank(config, learner, data)
    if isinstance(source, Groups):
        check_groups(config, learner, source)
    return learner


def start_at_closed_form(learner: MetaLearner, source: Source) -> None:
    """Set the parameters of model and guide to closed-form maximum-likelihood estimates if model.start=closed_form.

    Does nothing if the estimates have no closed form for this data or this model.
    """
    model = learner.model
    if isinstance(source, Groups) and isinstance(model, StartsAtEstimates) and model.start == "closed_form":
        estimates = source.estimates(diagonal=has_independent_effects(learner, source))
        for part in (model, learner.guide) if estimates else ():
            if isinstance(part, StartsAtEstimates):
                part.start_at_estimates(estimates)


def pretrain_learner(config: Config, learner: MetaLearner, bank: Bank, device: torch.device) -> Bank:
    """Pretrain the backbone, and set the classifier weights of classes that are fixed for all tasks.

    Returns:
        The data set with features as inputs. The unchanged data set if the backbone is trained further, or if it
            encodes whole tasks.
    """
    features, classes = _features_and_classes(config, learner, bank, device)
    part = learner.model if config.task.base_query else learner.guide if bank.num_shared else None
    if isinstance(part, StartsAtClasses):
        holdout = config.pretrain.holdout_per_class
        part.start_at_classes(_class_means(features, holdout) if classes is None else classes)
    return features if config.frozen else bank


def restored_bank(config: Config, learner: MetaLearner, bank: Bank, device: torch.device) -> Bank:
    """Return the data set with features under the restored backbone; unchanged if the backbone is not frozen."""
    if not config.frozen:
        return bank
    if not any(True for _ in learner.backbone.parameters()):
        return embed_bank(learner.backbone, bank, device)
    return features_under(learner.backbone, config.specification()["backbone"], bank, config.pretrain, device)


def _features_and_classes(
    config: Config, learner: MetaLearner, bank: Bank, device: torch.device
) -> tuple[Bank, Tensor | None]:
    """Return the data set with features, and the weights [classes, features] of the pretrained classifier.

    The weights are None if the backbone was not pretrained here.
    """
    if isinstance(learner.backbone, EmbedsTasks):
        return bank, None
    if not any(True for _ in learner.backbone.parameters()):
        if isinstance(learner.backbone, TransformsFeatures) and learner.backbone.transforms:
            learner.backbone.centre_on(_training_inputs(bank, config.pretrain.holdout_per_class))
        return embed_bank(learner.backbone, bank, device), None
    specification = config.specification()["backbone"]
    if learner.backbone.pretrained:
        return features_under(learner.backbone, specification, bank, config.pretrain, device), None
    pretrained = pretrain(learner.backbone, specification, bank, config.pretrain, device)
    learner.backbone.requires_grad_(not config.frozen)
    return pretrained.bank, pretrained.classes


def _training_inputs(bank: Bank, holdout_per_class: int) -> Iterator[Tensor]:
    """Yield the inputs of the training classes, without held-out inputs, in small pieces [inputs, features]."""
    rows = bank.rows("train")
    if holdout_per_class:
        rows = rows[~torch.isin(rows, held_out_rows(bank, holdout_per_class))]
    for piece in rows.split(PIECE):
        yield bank.inputs.index_select(0, piece)


def _class_means(features: Bank, holdout_per_class: int) -> Tensor:
    """Return the mean feature of each training class [classes, features], without held-out inputs."""
    seen = without_rows(features, held_out_rows(features, holdout_per_class))
    rows_of_classes = seen.in_memory[seen.rows("train")].split(seen.class_sizes[seen.splits["train"]].tolist())
    return torch.stack([rows.mean(0) for rows in rows_of_classes])


def _refuse_base_classes_without_model(config: Config, learner: MetaLearner, source: Source) -> None:
    possible = isinstance(source, BaseNovelSampler) and isinstance(learner.model, StartsAtClasses)
    if config.task.base_query and not possible:
        raise UsageError(
            f"expected model=lwof and a data set of classes for task.base_query={config.task.base_query}, got "
            f"model={config.model['_target_']} on data={config.choices.get('data')}; set task.base_query=0"
        )


def _refuse_tasks_without_shared_classes(config: Config, learner: MetaLearner, data: Bank | Source) -> None:
    shared = data.num_shared if isinstance(data, Bank) else 0
    if learner.guide.needs_shared_classes and not shared:
        raise UsageError(
            f"expected data whose tasks share their classes for guide={config.choices.get('guide')}, got data="
            f"{config.choices.get('data')}; take data=digit_domains or data=pacs"
        )


def _refuse_transforms_without_bank(config: Config, learner: MetaLearner, data: Bank | Source) -> None:
    transforms = isinstance(learner.backbone, TransformsFeatures) and learner.backbone.transforms
    if transforms and not isinstance(data, Bank):
        raise UsageError(
            f"expected a data set of features for backbone.power and backbone.centre, got data="
            f"{config.choices.get('data')}, a simulator; set backbone.power=1 and backbone.centre=false"
        )
