"""The files of the learners that ship."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyro_metabayes.errors import check_choice
from pyro_metabayes.storage.checksums import refuse_other

FOLDER = Path(__file__).parent
# SHA-256 of NAME.pt, which `python -m experiments.pretrain_learner NAME` writes.
CHECKSUMS = {
    "transductive": "8fe759f01c749ccb1ee1c0c296917c98141b5c02040dd10a08a034398d689fef",
    "inductive": "d8d62c8d76e944845b3c74cd09d0a567975074b8eb284fa468a3891f86feb37c",
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
