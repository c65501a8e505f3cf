"""Explains unknown settings: names of similar settings, and the choice whose YAML has set an unknown one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pyro_metabayes.build import target_of
from pyro_metabayes.errors import UnknownKey, UsageError, unknown_key
from pyro_metabayes.experiments.cli.explanations import settings_of_schema, settings_of_target
from pyro_metabayes.experiments.cli.overrides import key_of, owner_of

FILLED_IN = ("hydra", "choices", "estimated")  # groups of settings that a user does not set
CONF = Path(__file__).parents[1] / "conf"


@contextlib.contextmanager
def naming_choices(configuration: Any) -> Iterator[None]:
    """Context manager that explains UnknownKey errors. The new message names the choice that has set the key.

    For example, guide=laplace sets prior.scale, which prior=flat does not have.

    Args:
        configuration: all settings of the command by group, a dataclass such as Config or a composed DictConfig. The
            group `choices` has the names of data and guide.

    Raises:
        UsageError: the YAML of a choice has set the unknown key. The message names this choice.
        UnknownKey: the user has set the unknown key. The message lists the settings of the choice, such as prior=flat,
            and suggests a similar setting of any group.
    """
    try:
        yield
    except UnknownKey as error:
        part, _, name = error.key.partition(".")
        settings: Any = (
            OmegaConf.to_container(configuration) if OmegaConf.is_config(configuration) else asdict(configuration)
        )
        setter = _setter(settings.get("choices", {}), part, name)
        choice = HydraConfig.get().runtime.choices.get(part) if HydraConfig.initialized() else None
        chosen = f"{part}={choice}" if choice else error.owner
        if not setter:
            raise UnknownKey(error.key, error.names, chosen, named_settings(settings)) from None
        raise UsageError(
            f"{setter} sets {error.key}, which {chosen} does not have; take another {part}= or "
            f"{setter.partition('=')[0]}=, or remove the setting: ~{error.key}"
        ) from None


def refuse_unknown_names(arguments: Sequence[str], schema: type, run_schema: type) -> None:
    """Check the names of the settings of a command on finished runs.

    Args:
        arguments: settings NAME=VALUE of the command.
        schema: the dataclass of the settings of the command.
        run_schema: the dataclass of the settings of a run. Those of task and eval may be suggested.
    """
    names = [setting.name for setting in fields(schema)]
    of_runs = [name for name, _ in settings_of_schema(run_schema) if name.startswith(("task.", "eval."))]
    for key in map(key_of, arguments):
        if key not in names:
            raise unknown_key(key, names, owner_of(key), of_runs)


def named_settings(configuration: Mapping[str, Any]) -> list[str]:
    """Return the names of all settings of a configuration, such as seed, train.steps and guide.step_size.

    Args:
        configuration: the settings by group. A group with `_target_` has the settings of this class too.
    """
    groups = {group: value for group, value in configuration.items() if group not in FILLED_IN}
    nested = [(group, value) for group, value in groups.items() if isinstance(value, Mapping)]
    return [*groups, *(f"{group}.{name}" for group, value in nested for name in _names_in(group, value))]


def _names_in(group: str, settings: Mapping[str, Any]) -> list[str]:
    names = [name for name in settings if name != "_target_"]
    with contextlib.suppress(UsageError):  # `_target_` is missing or wrong, which is not the mistake to explain
        names += settings_of_target(group, target_of(settings, group))
    return names


def _setter(choices: Mapping[str, str], part: str, name: str) -> str:
    """Return the choice of another group that sets `part.name`, such as guide=laplace for prior.scale; else ''."""
    for group, settings in _settings_of(choices).items():
        if group != part and name in (settings.get(part) or {}):
            return f"{group}={choices[group]}"
    return ""


def rates_of_choices(choices: Mapping[str, str]) -> dict[str, float]:
    """Return the entries of train.learning_rates that the YAML files of the choices set."""
    rates: dict[str, float] = {}
    for settings in _settings_of(choices).values():
        rates |= (settings.get("train") or {}).get("learning_rates") or {}
    return rates


def _settings_of(choices: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read the settings in the YAML file of each choice, as {group: settings}."""
    paths = {group: CONF / group / f"{choice}.yaml" for group, choice in choices.items()}
    contents: Any = {
        group: OmegaConf.to_container(OmegaConf.load(path)) for group, path in paths.items() if path.exists()
    }
    return contents
