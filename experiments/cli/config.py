"""Typed settings of a run. The settings of a guide, a prior or a head are the arguments of its constructor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_metabayes.build import arguments_of, target_of
from pyro_metabayes.data.placement import PLACES
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import UsageError, check_choice, unknown_key
from pyro_metabayes.evaluation.settings import EvalSettings
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.overrides import LITERALS, key_of, literal_value, owner_of
from pyro_metabayes.moved import estimated_before
from pyro_metabayes.pretraining import PretrainSettings
from pyro_metabayes.specification.parts import PARTS
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of, within
from pyro_metabayes.training.data_parallel import refuse_unequal_shards
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.validation.same_training import FIT


@dataclass
class TrainerSettings:
    """Settings trainer.*: the devices of a run."""

    devices: int = 1  # number of devices; they share the tasks of each step (docs/several-devices.md)

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UsageError(f"expected trainer.devices >= 1, got {self.devices}")


@dataclass
class Config:
    """Settings that define a run."""

    data: dict[str, Any]  # data.device, the memory for the inputs: cpu, accelerator, auto (accelerator if inputs fit)
    backbone: dict[str, Any]
    model: dict[str, Any]
    head: dict[str, Any] | None
    prior: dict[str, Any] | None
    objective: dict[str, Any]
    guide: dict[str, Any]
    task: TaskShape = field(default_factory=TaskShape)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    choices: dict[str, str] = field(default_factory=dict)  # the names chosen for data and guide; filled in
    estimated: dict[str, Any] = field(default_factory=dict)  # data settings estimated from training groups; filled in
    seed: int = 0  # seed of the initial weights, the tasks and the noise
    device: str = "auto"  # auto (the accelerator that torch finds, else the CPU), cpu, cuda, cuda:1, mps, xpu
    threads: int = 1  # number of CPU threads of torch; it affects the last digits of the results
    logger: dict[str, Any] | None = None  # service that also receives the lines of metrics.jsonl
    init: str = ""  # initial weights: a learner that ships (transductive, inductive), or the folder of a run
    resume: str = ""  # folder of an interrupted run to continue

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"expected 0 <= seed < 2^63, got {self.seed}")
        if self.threads < 1:
            raise UsageError(f"expected threads >= 1, got {self.threads}")
        refuse_unequal_shards(self.train.tasks_per_step, self.trainer.devices)
        if not isinstance(frozen := self.backbone.get("frozen", True), bool):
            raise UsageError(f"expected backbone.frozen to be true or false, got {frozen!r}")
        check_choice("data.device", self.place, PLACES)

    def with_absolute_path(self) -> Config:
        """Return the settings with an absolute data.path. A finished run then finds its data from any folder."""
        path = self.data.get("path")
        absolute = {"path": str(user_path(path).absolute())} if path and isinstance(path, str) else {}
        return replace(self, data=self.data | absolute)

    def specification(self) -> dict[str, Any]:
        """Return the settings of model, guide, backbone (without frozen), prior, head and objective as plain dicts."""
        parts = {name: dict(value) for name in PARTS if (value := getattr(self, name))}
        parts["backbone"].pop("frozen", None)
        return parts

    def source(self) -> dict[str, Any]:
        """Return the arguments of the data source: data.* without data.device, and settings estimated in training.

        Estimated settings, such as means, also apply if data.path is changed.
        """
        return {name: value for name, value in self.data.items() if name != "device"} | self.estimated

    @property
    def place(self) -> str:
        """Setting data.device: the memory that holds the inputs of the data set (auto, cpu or accelerator)."""
        return str(self.data.get("device", "auto"))

    @property
    def frozen(self) -> bool:
        """Setting backbone.frozen: whether the pretrained backbone keeps its weights in meta-training."""
        return bool(self.backbone.get("frozen", True))


@cache
def register() -> None:
    """Register Config with Hydra, which then checks the names and types of the settings of a run."""
    ConfigStore.instance().store(name="schema", node=Config)


def config_from(config: DictConfig) -> Config:
    """Convert the configuration that Hydra has composed to a Config."""
    value = OmegaConf.to_object(config)
    assert isinstance(value, Config)
    with naming_choices(value):
        _refuse_added(value)
    return value


def _refuse_added(settings: Any, prefix: str = "") -> None:
    """Check that a dataclass has no attributes other than its fields. Hydra alone would accept +train.foo=1.

    Args:
        settings: the dataclass; dataclasses in it are checked too.
        prefix: prefix of the names in messages, such as "train.".

    Raises:
        UnknownKey: there is another attribute.
    """
    names = [setting.name for setting in fields(settings)]
    for name, value in vars(settings).items():
        if name not in names:
            raise unknown_key(prefix + name, names, owner_of(prefix + name))
        if is_dataclass(value):
            _refuse_added(value, f"{prefix}{name}.")


def saved_config(folder: Path, overrides: Sequence[str]) -> Config:
    """Return the configuration in the checkpoint of a run, changed by overrides such as train.steps=4000.

    Raises:
        UsageError: an override is not a setting like train.steps=4000, or there is no valid saved configuration.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key in {setting.name for setting in fields(Config)} - {"seed", "device", "threads"}:
            raise UsageError(
                f"expected a setting like train.steps=4000, got '{override}'; a run keeps its guide, model and data"
            )
    saved = checkpoint.load(within(folder, "checkpoint.pt")).get("config")
    if not isinstance(saved, dict) or not saved or FIT in saved:
        raise UsageError(f"expected the checkpoint of a run in {folder}, got no configuration; take another folder")
    texts = [override for override in overrides if key_of(override) in LITERALS]
    others = [override for override in overrides if override not in texts]
    merged = OmegaConf.merge(_saved_settings(saved, folder), OmegaConf.from_dotlist(others))
    assert isinstance(merged, DictConfig)
    for override in texts:  # as they are written: from_dotlist would read them as YAML
        OmegaConf.update(merged, key_of(override), literal_value(override))
    return config_from(merged)


def with_moved_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """Convert the saved configuration of a run of an earlier version to the present version.

    task.train_shift becomes data.train_shift, unless the shift is 0 and the data have no such setting. A missing entry
    `estimated` is added, with a mean of 0 for each predictor that data=groups did not centre. Version 0.1 centred
    predictors only with data.centre=true.
    """
    task, data = dict(saved.get("task", {})), dict(saved.get("data", {}))
    shift = task.pop("train_shift", None)
    if shift or (shift is not None and "train_shift" in arguments_of(target_of(data, "data"))):
        data.setdefault("train_shift", shift)
    return {"estimated": estimated_before(data)} | saved | {"task": task, "data": data}


def _saved_settings(saved: Any, folder: Path) -> DictConfig:
    """Return a saved configuration as an OmegaConf node, after checking names and types against Config.

    Raises:
        UsageError: the configuration is invalid, or contains an interpolation ${...}.
    """
    try:
        if "${" in repr(saved):
            raise ValueError("the configuration has interpolations (${...})")
        config = OmegaConf.merge(OmegaConf.structured(Config), with_moved_settings(saved))
        assert isinstance(config, DictConfig)
        config_from(config)
        return config
    except (*DAMAGED, OmegaConfBaseException) as error:
        raise UsageError(
            f"expected a valid configuration of a run in {folder}, got an error: {reason_of(error)}; start a new run"
        ) from None
