"""python -m benchmarks.few_shot.make_banks [BANK ...]: build banks of the comparison and keep them in the cache folder.

Features of pretrained networks need packages that the project does not depend on; a message names these packages. A
bank of such features may be built in another Python environment with the same cache folder (METABAYES_CACHE). The
packages are not needed to read this bank.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.few_shot.banks import TEST, TUNING, source_of
from pyro_metabayes.errors import UsageError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_shot.make_banks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("banks", nargs="*", metavar="BANK", help=f"among {', '.join(TEST | TUNING)} (default: all)")
    names = parser.parse_args(arguments).banks or list(TEST | TUNING)
    torch.set_num_threads(1)
    failed = False
    for name in names:
        try:
            print(f"{name}: {source_of(name).input_shape[0]} dimensions")
        except UsageError as error:
            failed = True
            print(f"error: {name}: {error}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
