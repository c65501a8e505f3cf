"""The files of the pretrained learners that are part of the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyro_metabayes.errors import check_choice
from pyro_metabayes.storage.checksums import refuse_other

FOLDER = Path(__file__).parent
# {NAME: SHA-256 checksum of NAME.pt}. `python -m experiments.pretrain_learner NAME --out DIR` trains such a learner.
CHECKSUMS = {
    "transductive": "b5e739f7423fcdb167b0bc964b2ea0693e47a5f5f47b18eb784b48edd7b4bb5f",
    "inductive": "e4a907506ce432660c6c4a6d540c02a163d684af468ca76260273a2fc7e21155",
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
