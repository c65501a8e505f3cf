"""What the commands about a finished run share: `python -m experiments.NAME run=RUN_DIR tasks=32 task.shot=5`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.evaluate import BATCH
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import count_of, expecting, within

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


def finished(folder: Path, config: Config) -> dict[str, Any]:
    """The checkpoint of a run that has taken all its steps."""
    state = checkpoint.load(within(folder, "checkpoint.pt"))
    if "training" not in state:
        raise UsageError(f"expected the checkpoint of a run in {folder}, got one without its training")
    with expecting(f"the checkpoint of a run in {folder}"):
        taken, asked = count_of(state["training"]["step"]), config.train.steps
        count_of(state["training"]["skipped"])
    if taken < asked:
        raise UsageError(
            f"expected a finished run, got {folder}, which stands at step {taken} of {asked}; "
            f"finish it with: python -m experiments.run resume={folder}"
        )
    return state


def trained(state: dict[str, Any], config: Config) -> Assembly:
    """The best learner of a checkpoint and its tasks; the configuration may differ in what has no weights."""
    with expecting("a checkpoint with a learner"):
        num_classes, weights = count_of(state["best"]["specification"]["num_classes"]), state["best"]["weights"]
    assembly = Assembly(config, num_classes)
    with expecting("a checkpoint with the weights of a learner"):
        assembly.learner.load_weights(weights)
    assembly.learner.to(assembly.device)
    return assembly


def assembly_of(folder: str, changed: Sequence[str], num_tasks: int) -> Assembly:
    """A trained run whose evaluation has as many tasks as asked for."""
    if num_tasks < 2:
        raise UsageError(f"expected tasks >= 2, got {num_tasks}")
    config = saved_config(Path(folder), changed)
    assembly = trained(finished(Path(folder), config), config)
    most = assembly.stream(config.eval.split).num_tasks
    if most and num_tasks > most:
        raise UsageError(f"expected tasks <= {most}, all that the {config.eval.split} split has, got {num_tasks}")
    return assembly


def run_and_tasks(folder: str, changed: Sequence[str], num_tasks: int) -> tuple[Assembly, Episodes]:
    """A trained run, and the first tasks of its evaluation, as model and guide take them."""
    assembly = assembly_of(folder, changed, num_tasks)
    stream = assembly.stream(assembly.config.eval.split)
    return assembly, assembly.learner.featured(stream.batch(0, num_tasks))


def batches(stream: TaskStream, num_tasks: int) -> Iterator[Episodes]:
    """Tasks 0, ..., num_tasks - 1, as many at once as an evaluation takes."""
    for start in range(0, num_tasks, BATCH):
        yield stream.batch(start, min(start + BATCH, num_tasks))
