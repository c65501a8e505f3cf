"""The published class splits, as lists of names in splits/."""

from __future__ import annotations

from pathlib import Path

from pyro_metabayes.data.bank import SPLITS


def class_lists(name: str) -> dict[str, list[str]]:
    """Class names of train, val and test, one per line in splits/NAME_SPLIT.txt."""
    folder = Path(__file__).parent / "splits"
    return {split: (folder / f"{name}_{split}.txt").read_text(encoding="utf-8").split() for split in SPLITS}
