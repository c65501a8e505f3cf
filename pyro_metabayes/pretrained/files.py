"""The files of the learners that ship."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyro_metabayes.errors import check_choice
from pyro_metabayes.storage.checksums import refuse_other

FOLDER = Path(__file__).parent
# SHA-256 of NAME.pt, which `python -m experiments.pretrain_learner NAME` writes.
CHECKSUMS = {
    "transductive": "1fbf28a72e624144769f61e6337e337c06874e3cf09709f73f3fcd385bef1f4d",
    "inductive": "94700f92cb188748e9b9c6e1bcfeb3e1995bd96b5d9e46fc81128e98a55db9e6",
}


def pretrained_file(name: str) -> Path:
    """The file of a learner.

    Args:
        name: `transductive` or `inductive`.

    Raises:
        UsageError: another name, or a file with another checksum.
    """
    check_choice("the pretrained learner", name, tuple(CHECKSUMS))
    path = FOLDER / f"{name}.pt"
    refuse_other(hashlib.sha256(path.read_bytes()).hexdigest(), CHECKSUMS[name], str(path))
    return path
