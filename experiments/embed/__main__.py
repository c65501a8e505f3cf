"""python -m experiments.embed FOLDER out=features.npz backbone=timm backbone.name=resnet18: save features of images.

FOLDER has one folder per class, as for data=image_folder. Images are resized to the square input of the network. The
file has the arrays that data=features reads: features, labels (names of the classes) and files. If FOLDER is divided
into splits, the file also has the array split. The same command continues after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig

from pyro_metabayes.build import build
from pyro_metabayes.data.bank import SPLITS
from pyro_metabayes.data.sources.class_folders import ImageFiles
from pyro_metabayes.data.sources.images import colour_of
from pyro_metabayes.device import device_of
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.experiments.cli.arguments import command_line
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.embed.features import embedded
from pyro_metabayes.models.backbones.pretrained_network import PretrainedNetwork
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.validation.duplicates import note_equal_keys

SETTINGS = ("backbone", "device", "threads", "seed", "data.background")
CHANNELS = [3, 84, 84]  # shape for building the network; colour images may have any size


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a folder with one folder of images per class")
    parser.add_argument("settings", nargs="*", help=f"out=FILE.npz, and settings of {', '.join(SETTINGS)}")
    options = parser.parse_args(arguments)
    _refuse_no_folder(options.folder)
    out, config = _out_and_config(options.settings)
    torch.set_num_threads(config.threads)
    network = _network(config)
    images, background = ImageFiles.of(options.folder), colour_of(config.data.get("background", "white"))
    arrays = embedded(images.files, network, config.specification()["backbone"], background)
    folder = user_path(options.folder)
    files = np.array([path.relative_to(folder).as_posix() for path in images.files])
    splits = np.zeros(len(files), int) if images.split is None else images.split
    classes = splits * len(images.names) + images.labels
    note_equal_keys(arrays["keys"], classes, splits, lambda row: files[row], options.folder)
    stored = {"features": arrays["features"], "labels": np.array(images.names)[images.labels], "files": files}
    stored |= {} if images.split is None else {"split": np.array(SPLITS)[images.split]}
    write_atomically(out, lambda temporary: _save(temporary, stored))
    print(
        f"{how_many(len(files), 'image')} of {how_many(len(images.names), 'class', 'classes')}, "
        f"{arrays['features'].shape[1]} features each: {out}"
    )


def _refuse_no_folder(folder: str) -> None:
    if user_path(folder).is_dir():
        return
    if "=" in folder:
        raise UsageError(
            f"expected the folder of images first, got '{folder}'; write python -m experiments.embed FOLDER out=..."
        )
    raise UsageError(f"expected a folder of images, got '{folder}', which is not a folder; fix the path")


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # numpy appends .npz to a file name
        np.savez(file, allow_pickle=False, **arrays)


def _out_and_config(settings: Sequence[str]) -> tuple[Path, Config]:
    """Parse the settings. Return the file that out= names, and the configuration of the other settings.

    Raises:
        UsageError: out= is missing or exists, or a setting is not allowed.
    """
    named = [setting for setting in settings if setting.startswith("out=")]
    others = [setting for setting in settings if not setting.startswith("out=")]
    if len(named) != 1 or not named[0].endswith(".npz"):
        raise UsageError(f"expected out=FILE.npz once, got {' '.join(named) or 'none'}; name the file to write")
    for setting in others:
        if setting.partition("=")[0].partition(".")[0] not in SETTINGS and not setting.startswith("data.background="):
            raise UsageError(f"expected settings of {', '.join(SETTINGS)}, got '{setting}'; remove this setting")
    out = user_path(named[0].removeprefix("out="))
    if out.exists():
        raise UsageError(f"expected a new file for out, got {out}, which exists; name another file")
    return out, config_of(["data=image_folder", *others])


def _network(config: Config) -> PretrainedNetwork:
    """Build the pretrained network that the settings name, and move it to the device.

    Raises:
        UsageError: the backbone is not a pretrained network.
    """
    torch.manual_seed(config.seed)  # for random weights
    with naming_choices(config):
        network = build(config.specification()["backbone"], "backbone", input_shape=CHANNELS)
    if not isinstance(network, PretrainedNetwork):
        given = HydraConfig.get().runtime.choices["backbone"]
        raise UsageError(
            f"expected backbone=timm or backbone=torchvision, got backbone={given}; to train this backbone, use "
            f"{command_line('run')} data=image_folder"
        )
    return network.to(device_of(config.device)).eval()


if __name__ == "__main__":
    run_program(main)
