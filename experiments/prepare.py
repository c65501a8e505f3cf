"""python -m experiments.prepare data=cifar_fs: download, convert or check a data set, and count its classes and inputs.

With backbone=timm or backbone=torchvision, the command also downloads the weights of the network.

Only this command downloads. A training run converts data on first use, but never downloads. Finished parts are kept, so
the same command continues after an interruption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.build import build
from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.mapped import MappedRows
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.command import run_command
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.models.backbones.pretrained_network import LIBRARY
from pyro_metabayes.storage import downloads
from pyro_metabayes.storage.cache import cache_folder


def counts(bank: Bank) -> list[dict[str, str]]:
    """Count the classes, inputs and inputs per class of each split, as the rows of a table."""
    rows = []
    for split in SPLITS:
        sizes = bank.class_sizes[bank.splits[split]]
        domains = len(sizes) // bank.num_shared if bank.num_shared else 0
        classes = f"{bank.num_shared} in {domains} domain{'s' * (domains > 1)}" if domains else str(len(sizes))
        least, most = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
        per_class = str(most) if least == most else f"{least} to {most}"
        rows.append({"split": split, "classes": classes, "inputs": str(int(sizes.sum())), "per class": per_class})
    return rows


def main(composed: DictConfig, folder: Path) -> None:
    specification: Any = OmegaConf.to_container(composed.data, resolve=True)
    try:
        with downloads.allowed(), naming_choices(composed):
            data = build(specification, "data")
            _download_weights(composed)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished parts are kept: the same command continues") from None
    if not isinstance(data, Bank):
        print("nothing to prepare: these tasks are simulated")
        return
    if isinstance(data.inputs, MappedRows):
        data.inputs.check()
    print(text_table(counts(data)))
    print(f"inputs of shape {list(data.input_shape)}; cache: {cache_folder()}")


def _download_weights(composed: DictConfig) -> None:
    """Download the weights of backbone=timm or torchvision by building the network. Other backbones are skipped."""
    backbone: Any = OmegaConf.to_container(composed.backbone, resolve=True)
    backbone.pop("frozen", None)
    if backbone.get("weights") == LIBRARY:
        build(backbone, "backbone", input_shape=[3, 84, 84])


if __name__ == "__main__":
    run_command(main, "prepare")
