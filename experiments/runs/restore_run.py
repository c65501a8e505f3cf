"""Restores a finished run, for commands such as `python -m experiments.NAME RUN_DIR tasks=32 task.shot=5`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.evaluate import BATCH
from pyro_metabayes.experiments.cli.arguments import command_line
from pyro_metabayes.experiments.cli.choices import refuse_unknown_names
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.cli.usage import asks_for_help, usage_of_settings
from pyro_metabayes.experiments.runs.grouped_data import reads_new_groups, with_all_groups
from pyro_metabayes.experiments.runs.setup import RunSetup, set_up
from pyro_metabayes.experiments.runs.tasks import EstimatesSettings
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.storage.untrusted import count_of, expecting, within
from pyro_metabayes.validation.trained_on import TaskRange

Settings = TypeVar("Settings")
SETTING = re.compile(r"[\w.]+=")
COMMAND_SETTING = re.compile(r"\w+=")
READING = ("data.path=", "data.missing=", "data.decimal=")  # settings that may change, to evaluate on another file
TRAINED = ("train.", "pretrain.", "backbone.", "data.", "seed=")  # settings that are fixed after training


def refuse_training(settings: Sequence[str]) -> None:
    """Check that no setting belongs to training. Settings for reading a data file are allowed."""
    for setting in settings:
        if setting.startswith(TRAINED) and not setting.startswith(READING):
            raise UsageError(f"expected settings of task, eval or guide, got '{setting}'; an evaluation does not train")


def refuse_unknown_classes(settings: Sequence[str]) -> None:
    """Check that task.unknown is not set, in a command whose tasks have no unknown classes."""
    if any(setting.startswith("task.unknown=") for setting in settings):
        raise UsageError("expected no task.unknown here, got this setting; remove it, or use experiments.evaluate")


def settings_of(schema: type[Settings], arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Parse the arguments of a command into its own settings, and changed settings of the run.

    Args:
        schema: dataclass of the settings of the command; its field `run` is a string, or a list for several runs.
        arguments: folders of runs (`RUN_DIR`, or `run=RUN_DIR` as in version 0.1), settings of the command
            (`tasks=32`), and settings of the run (`task.shot=5`).

    Raises:
        UsageError: no run, too many runs, or an unknown setting.
    """
    if asks_for_help(arguments):
        print(usage_of_settings(sys.modules[schema.__module__].__doc__, schema))
        sys.exit()
    folders = [argument for argument in arguments if not SETTING.match(argument)]
    command_settings = [argument for argument in arguments if COMMAND_SETTING.match(argument)]
    run_settings = [argument for argument in arguments if argument not in (*folders, *command_settings)]
    refuse_unknown_names(command_settings, schema, Config)
    refuse_training(run_settings)
    refuse_unknown_classes(run_settings)
    merged = OmegaConf.merge(OmegaConf.structured(schema), _runs(folders, schema), *map(_setting, command_settings))
    if OmegaConf.missing_keys(merged):
        raise UsageError("expected RUN_DIR, the folder of a finished run, got none; --help lists all settings")
    return cast(Settings, OmegaConf.to_object(merged)), run_settings


def _runs(folders: Sequence[str], schema: type) -> DictConfig:
    """Return the setting `run`: the folder of one run as a string, or several folders as a list."""
    if len(folders) > 1 and get_type_hints(schema)["run"] is str:
        got = f"{len(folders)}: {', '.join(folders)}"
        raise UsageError(f"expected the folder of one run, got {got}; give one folder, and settings as NAME=VALUE")
    for folder in folders if len(folders) > 1 else ():  # checked first, since the first run may take minutes
        if not (user_path(folder) / "checkpoint.pt").is_file():
            got = f"'{folder}', which {'has no checkpoint.pt' if user_path(folder).is_dir() else 'is not a folder'}"
            raise UsageError(f"expected folders of runs, got {got}; give folders of runs, and settings as NAME=VALUE")
    paths = [str(user_path(folder)) for folder in folders]
    return OmegaConf.create({"run": paths if len(paths) > 1 else paths[0]} if paths else {})


def _setting(argument: str) -> DictConfig:
    """Parse an argument NAME=VALUE. The value of run= is taken literally, because a path may contain any character."""
    name, _, value = argument.partition("=")
    if name == "run" and (not value.startswith("[") or user_path(value).exists()):
        return OmegaConf.create({name: str(user_path(value))})
    return OmegaConf.from_dotlist([argument])


def finished_checkpoint(folder: Path, config: Config) -> dict[str, Any]:
    """Load the checkpoint of a finished run.

    Raises:
        UsageError: the run has not taken all steps, or the checkpoint is invalid.
    """
    state = checkpoint.load(within(folder, "checkpoint.pt"))
    if "training" not in state:
        raise UsageError(f"expected the checkpoint of a run in {folder}, got no training state; give another folder")
    with expecting(f"the checkpoint of a run in {folder}"):
        step, num_steps = count_of(state["training"]["step"]), config.train.steps
        count_of(state["training"]["skipped"])
    if step < num_steps:
        raise UsageError(f"expected a finished run, got {folder}, at step {step} of {num_steps}; {_finish(folder)}")
    return state


def refuse_without_results(folder: Path) -> NoReturn:
    """Raise a UsageError for a folder without results.json. If it holds a run, the message says how to finish it."""
    finished_checkpoint(folder, saved_config(folder, []))
    raise UsageError(f"expected a finished run, got {folder}, which has no results.json; {_finish(folder)}")


def _finish(folder: Path) -> str:
    return f"finish it with: {command_line('run')} {shlex.quote(f'resume={folder}')}"


def restore_learner(state: dict[str, Any], config: Config) -> RunSetup:
    """Restore the best learner of a checkpoint, with its tasks. `config` may change settings that are not learned."""
    with expecting("a checkpoint with a learner"):
        num_classes, weights = count_of(state["best"]["specification"]["num_classes"]), state["best"]["weights"]

    def restore(learner: MetaLearner) -> None:
        with expecting("a checkpoint with the weights of a learner"):
            learner.load_weights(weights)
            learner.trained_on = TaskRange.restored(state["best"].get("trained_on"))

    new = reads_new_groups(config, state.get("config", {}))
    config = with_all_groups(config) if new else config
    setup = replace(set_up(config, num_classes, training=False, restore=restore), new_data=new)
    _refuse_learned_step_sizes(state, config, setup.learner)
    _refuse_unknown_scales(state, config, setup)
    setup.learner.to(setup.device)
    return setup


def _refuse_learned_step_sizes(state: dict[str, Any], config: Config, learner: MetaLearner) -> None:
    """Check that a changed step size was not learned. The checkpoint would override the changed setting."""
    saved, now, learned = state["best"]["specification"], config.specification(), dict(learner.named_parameters())
    for part in ("guide", "model"):
        for name in [name for name in now[part] if name.endswith("step_size")]:
            changed = now[part][name] != saved[part].get(name, now[part][name])
            if changed and (f"{part}.{name}" in learned or f"{part}.log_{name}" in learned):
                raise UsageError(
                    f"expected a run with a fixed step size for {part}.{name}={now[part][name]}, got a learned "
                    f"step size; set {part}.learn_step_size=false too, if {part} has that setting"
                )


def _refuse_unknown_scales(state: dict[str, Any], config: Config, setup: RunSetup) -> None:
    """Check that a run of version 0.1 reads its own file. Such a run cannot standardise another file."""
    saved, path = state.get("config", {}), config.data.get("path")
    unknown = isinstance(setup.tasks.source, EstimatesSettings) and "estimated" not in saved
    if unknown and path != saved.get("data", {}).get("path"):
        raise UsageError(
            f"expected a run with recorded scales of its columns to read data.path={path}, got a run of an earlier "
            "version; train it again"
        )


def restore_run(folder: Path, config: Config) -> RunSetup:
    """Restore the best learner of a finished run, with its tasks, under a configuration."""
    return restore_learner(finished_checkpoint(folder, config), config)


def setup_of(folder: str, changed: Sequence[str], num_tasks: int) -> RunSetup:
    """Restore the best learner of a finished run, with its tasks, under changed settings such as task.shot=5.

    Raises:
        UsageError: num_tasks is below 2, or more than the evaluation split has.
    """
    if num_tasks < 2:
        raise UsageError(f"expected tasks >= 2, got {num_tasks}")
    config = saved_config(Path(folder), changed)
    setup = restore_run(Path(folder), config)
    most = setup.tasks.stream(config.eval.split).num_tasks
    if most and num_tasks > most:
        raise UsageError(f"expected tasks <= {most}, the tasks of the {config.eval.split} split, got {num_tasks}")
    return setup


def run_and_tasks(folder: str, changed: Sequence[str], num_tasks: int) -> tuple[RunSetup, Episodes]:
    """Restore a finished run under changed settings, and draw its first evaluation tasks, with features as inputs."""
    setup = setup_of(folder, changed, num_tasks)
    stream = setup.tasks.stream(setup.config.eval.split)
    return setup, setup.learner.featured(stream.batch(0, num_tasks))


def batches(stream: TaskStream, num_tasks: int) -> Iterator[Episodes]:
    """Yield the tasks 0, ..., num_tasks - 1 of a stream, in batches of the same size as in an evaluation."""
    for start in range(0, num_tasks, BATCH):
        yield stream.batch(start, min(start + BATCH, num_tasks))
