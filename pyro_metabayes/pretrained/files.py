"""The files of the pretrained learners that are part of the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyro_metabayes.errors import check_choice
from pyro_metabayes.storage.checksums import refuse_other

FOLDER = Path(__file__).parent
# {NAME: SHA-256 checksum of NAME.pt}; `python -m experiments.pretrain_learner NAME` writes these files.
CHECKSUMS = {
    "transductive": "6d606310f57bad2cf5522c9ce4797e1283b635dbaef893a57444b17de3247927",
    "inductive": "a3b9d970ebc4a66c7e2cfa4263759515550e9dbe9814b47371f7819ad2021f2f",
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
