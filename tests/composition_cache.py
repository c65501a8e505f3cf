"""Memoises the configurations that Hydra composes from choices of groups. The settings of a test change a copy.

The composition of a configuration takes as long as a small run, and most tests choose the same groups. The key contains
the schema of the command, since each call of a command defines the schema anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from typing import Any

import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.experiments.cli.command import CONF

FIXED = ("pkg://hydra.conf", "structured://", f"file://{CONF}", CONF)  # what no test changes


@contextmanager
def composed_once() -> Iterator[None]:
    """Context manager in which Hydra composes each choice of groups once."""
    create, compose = defaults_list.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    lists: dict[tuple[Any, ...], defaults_list.DefaultsList] = {}
    composed: dict[tuple[Any, ...], DictConfig] = {}

    def create_once(repo: IConfigRepository, config_name: str | None, overrides_list: list[Any], **how: bool) -> Any:
        settings = defaults_list.Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        choices = [override for override in overrides_list if not any(override is setting for setting in settings)]
        key = (_sources(repo), config_name, *sorted(how.items()), *(choice.input_line for choice in choices))
        if key not in lists or not _is_fixed(repo):
            lists[key] = create(repo=repo, config_name=config_name, overrides_list=choices, **how)
        return replace(lists[key], config_overrides=settings)

    def compose_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: IConfigRepository) -> DictConfig:
        key = (_sources(repo), *((astuple(default), _schema(default.config_path)) for default in defaults))
        if key not in composed or not _is_fixed(repo):
            composed[key] = compose(loader, defaults=defaults, repo=repo)
        return copy.deepcopy(composed[key])

    def copy_list_of_sources(caching: CachingConfigRepository, delegate: IConfigRepository) -> None:
        """Hydra copies every source, a fifth of a composition, though it replaces only their list."""
        caching.delegate, caching.cache = copy.copy(delegate), {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachingConfigRepository, "__init__", copy_list_of_sources)
        patch.setattr(config_loader_impl, "create_defaults_list", create_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_once)
        yield


def _sources(repo: IConfigRepository) -> tuple[str, ...]:
    return tuple(source.full_path() for source in repo.get_sources())


def _is_fixed(repo: IConfigRepository) -> bool:
    return all(path in FIXED for path in _sources(repo))


def _schema(config_path: str | None) -> type | None:
    """Return the class of a configuration that a command has registered; None without a class."""
    entry: Any = ConfigStore.instance().repo.get(f"{config_path}.yaml")
    return OmegaConf.get_type(entry.node) if hasattr(entry, "node") else None
