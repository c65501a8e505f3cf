"""Composes the configuration of a run in Python, without a command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import Config, config_from, register
from pyro_metabayes.experiments.cli.overrides import composable


def config_of(settings: Sequence[str]) -> Config:
    """Return the configuration of `python -m experiments.run SETTINGS`, for settings such as guide=sib."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("config", composable(settings), return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # it holds the name chosen for each group, such as guide=sib
        with open_dict(composed):
            del composed["hydra"]
        return config_from(composed)
