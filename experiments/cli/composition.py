"""Composes the configuration of a run in Python, without a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import Config, config_from, register
from pyro_metabayes.experiments.cli.overrides import composable


@contextlib.contextmanager
def beside_command() -> Iterator[None]:
    """Context manager in which a command may call `config_of`. The state of Hydra is restored at the end."""
    command, called = GlobalHydra.instance(), HydraConfig.instance()
    hydra, config = command.hydra, called.cfg
    command.clear()
    try:
        yield
    finally:
        command.hydra, called.cfg = hydra, config


def config_of(settings: Sequence[str]) -> Config:
    """Return the configuration of `python -m experiments.run SETTINGS`, for settings such as guide=sib."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("config", composable(settings), return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # it holds the name chosen for each group, such as guide=sib
        with open_dict(composed):
            del composed["hydra"]
        return config_from(composed)
