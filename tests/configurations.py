"""Composes the configurations of rows of studies, without runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra import compose, initialize_config_dir

from pyro_metabayes.build import check
from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import config_from, register
from pyro_metabayes.experiments.cli.overrides import allow_part_setting
from pyro_metabayes.specification.parts import check_parts

Settings = Sequence[str]
NUMBER = re.compile(r"\b\d[\d.]*(e-?\d+)?\b")


def first_of_each(rows: Iterable[Settings]) -> list[Settings]:
    """The first of all rows that differ only in numbers, since a composition takes a tenth of a second."""
    firsts: dict[str, Settings] = {}
    for row in rows:
        firsts.setdefault(NUMBER.sub("1", " ".join(row)), row)
    return list(firsts.values())


def check_configurations(rows: Iterable[Settings]) -> None:
    """Check names and types of the settings of all parts, without building them."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        for row in rows:
            filled_in_by_hydra = "choices={data: none, guide: none}"
            config = config_from(compose("config", [*map(allow_part_setting, row), filled_in_by_hydra]))
            check_parts(config.specification())
            check(config.data, "data", ())
