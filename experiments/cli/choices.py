"""Explains unknown settings that the YAML of a choice sets. For example, guide=laplace sets prior.scale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pyro_metabayes.errors import UnknownKey, UsageError

CONF = Path(__file__).parents[1] / "conf"


@contextlib.contextmanager
def naming_choices(choices: Mapping[str, str]) -> Iterator[None]:
    """Context manager that explains UnknownKey errors. The new message names the choice that has set the key.

    For example, guide=laplace sets prior.scale, which prior=flat does not have.

    Args:
        choices: the names chosen for data and guide.

    Raises:
        UsageError: the YAML of a choice has set the unknown key. The message names this choice.
        UnknownKey: the user has set the unknown key. The message lists the settings that the choice has.
    """
    try:
        yield
    except UnknownKey as error:
        part, _, name = error.key.partition(".")
        setter = _setter(choices, part, name)
        choice = HydraConfig.get().runtime.choices.get(part) if HydraConfig.initialized() else None
        chosen = f"{part}={choice}" if choice else error.owner
        if not setter:
            raise UnknownKey(error.key, error.names, chosen) from None
        raise UsageError(
            f"{setter} sets {error.key}, which {chosen} does not have; take another {part}= or "
            f"{setter.partition('=')[0]}=, or remove the setting: ~{error.key}"
        ) from None


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
