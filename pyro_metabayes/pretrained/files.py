"""The files of the pretrained learners that are part of the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyro_metabayes.errors import check_choice
from pyro_metabayes.storage.checksums import refuse_other

FOLDER = Path(__file__).parent
# {NAME: SHA-256 checksum of NAME.pt}; `python -m experiments.pretrain_learner NAME` writes these files.
CHECKSUMS = {
    "transductive": "714b65a236f1089bb0fcb34ca199f2e815cd3f94f69acd2722ba1ea748c39d99",
    "inductive": "37469942d70a59ba816ff05df670bbd1d4889d906d9fcfd053b0c3cc478cba8b",
}


def pretrained_file(name: str) -> Path:
    """Verify the checksum of the file of a pretrained learner, and return the path of the file.

    Args:
        name: `transductive` or `inductive`.

    Raises:
        UsageError: no pretrained learner has this name, or the file has another checksum than recorded.
    """
    check_choice("the pretrained learner", name, tuple(CHECKSUMS))
    path = FOLDER / f"{name}.pt"
    refuse_other(hashlib.sha256(path.read_bytes()).hexdigest(), CHECKSUMS[name], str(path))
    return path
