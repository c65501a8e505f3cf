"""Builds the distribution torch-twin, which registers the device "twin" with torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """Compiles the extension into `folder`, which takes half a minute. A process needs the folder in PYTHONPATH."""
    from torch.utils.cpp_extension import include_paths, library_paths  # imports setuptools, whatever test comes next

    about = folder / "torch_twin-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-twin\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[torch.backends]\ntwin = torch_twin:register\n")
    shutil.copy(HERE / "torch_twin.py", folder)
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC"]
    command += [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    command += [str(HERE / "twin.cpp"), "-lc10", "-ltorch_cpu", "-o", str(folder / "libtwin.so")]
    subprocess.run(command, check=True)
    return folder
