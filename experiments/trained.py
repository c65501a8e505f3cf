"""What the commands about a finished run share: `python -m experiments.NAME run=RUN_DIR tasks=32 task.shot=5`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from experiments.assembly import Assembly
from experiments.config import Config, saved_config
from pyro_metabayes import checkpoint
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

Settings = TypeVar("Settings")
TRAINED = ("train.", "pretrain.", "backbone.", "data.", "seed=")  # what made the run, and cannot be changed after it


def refuse_training(settings: Sequence[str]) -> None:
    """Settings of a run that only its training could have followed; a file of data may have moved."""
    for setting in settings:
        if setting.startswith(TRAINED) and not setting.startswith("data.path="):
            raise UsageError(f"an evaluation does not train: expected settings of task, eval or guide, got '{setting}'")


def settings_of(schema: type[Settings], arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """The command's own settings (`tasks=32`), and those of the run that it changes (`task.shot=5`)."""
    for argument in arguments:
        if "=" not in argument:
            raise UsageError(f"expected settings like run=RUN_DIR and tasks=32, got '{argument}'")
    own = [argument for argument in arguments if "." not in argument.partition("=")[0]]
    of_run = [argument for argument in arguments if argument not in own]
    refuse_training(of_run)
    merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(own))
    settings: Any = OmegaConf.to_object(merged)  # refuses one that is missing
    return settings, of_run


def trained(folder: Path, config: Config) -> Assembly:
    """The best learner of a finished run and its tasks; the configuration may differ in what has no weights."""
    state = checkpoint.load(folder / "checkpoint.pt")
    if "training" not in state:
        raise UsageError(f"expected the checkpoint of a run in {folder}, got one without its training")
    taken, asked = state["training"]["step"], config.train.steps
    if taken < asked:
        raise UsageError(
            f"expected a finished run, got {folder}, which stands at step {taken} of {asked}; "
            f"finish it with: python -m experiments.run resume={folder}"
        )
    assembly = Assembly(config, state["best"]["specification"]["num_classes"])
    assembly.learner.load_weights(state["best"]["weights"])
    assembly.learner.to(assembly.device)
    return assembly


def run_and_tasks(folder: str, changed: Sequence[str], num_tasks: int) -> tuple[Assembly, Episodes]:
    """A trained run, and the first tasks of its evaluation, as many as asked for."""
    if num_tasks < 2:
        raise UsageError(f"expected tasks >= 2, got {num_tasks}")
    config = saved_config(Path(folder), changed)
    assembly = trained(Path(folder), config)
    stream = assembly.stream(config.eval.split)
    if stream.num_tasks and num_tasks > stream.num_tasks:
        raise UsageError(
            f"expected tasks <= {stream.num_tasks}, all that the {config.eval.split} split has, got {num_tasks}"
        )
    return assembly, assembly.learner.featured(stream.batch(0, num_tasks))
