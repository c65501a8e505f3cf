"""python tests/guided_fuzzing.py FORMAT -runs=10000: coverage-guided fuzzing of the loader of a file format.

Needs atheris, which has wheels for few systems, so no test depends on it. An input that is neither read nor refused
with a one-line message is written to the current folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["pyro_metabayes", "experiments", "pickle", "numpy.lib", "zipfile"]):
    from pyro_metabayes import UsageError
    from tests.fuzzing import FORMATS


def main() -> None:
    name, *options = sys.argv[1:]
    its, folder = FORMATS[name], Path(tempfile.mkdtemp())
    os.environ |= {"METABAYES_DATA": str(folder), "METABAYES_CACHE": str(folder / "cache")}
    its.lay_out(folder)
    (path,) = folder.glob(its.file)
    seeds = folder / "seeds"
    seeds.mkdir()
    (seeds / "right").write_bytes(path.read_bytes())

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(UsageError):
            its.load(folder)

    atheris.Setup([sys.argv[0], *options, f"-max_len={2 * path.stat().st_size}", str(seeds)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
