"""Reads the published class splits of data sets, which are lists of class names in splits/."""

from __future__ import annotations

from pathlib import Path

from pyro_metabayes.data.bank import SPLITS


def class_lists(name: str) -> dict[str, list[str]]:
    """Read the class names of train, val and test of a data set from splits/NAME_SPLIT.txt, one name per line."""
    folder = Path(__file__).parent / "splits"
    return {split: (folder / f"{name}_{split}.txt").read_text(encoding="utf-8").split() for split in SPLITS}
