"""python tests/installed.py FOLDER RUN: check an installed wheel. `make wheel` runs this where the wheel is installed.

FOLDER is emptied, and the checks run in it. RUN is the folder of a run of an earlier version.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import files
from pathlib import Path

SMALL = ("data=gaussian_features", "train.steps=2", "train.validation_tasks=4", "eval.tasks=4")


def metabayes(*arguments: str) -> str:
    """The output of the console script. If the script fails, this one ends."""
    command = [str(Path(sysconfig.get_path("scripts")) / "metabayes"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: metabayes {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def installed_folders() -> set[str]:
    """The top-level names that the wheel put into site-packages."""
    every = files("pyro_metabayes") or []
    return {path.parts[0] for path in every if path.parts[0] != ".."}


def try_the_library(run: Path) -> None:
    """A checkpoint of an earlier version predicts, and so does a classifier without one."""
    import numpy as np

    from pyro_metabayes import FewShotClassifier, MetaLearner

    learner = MetaLearner.load(run)
    width = learner.specification["input_shape"][0]
    noise = np.random.default_rng(0)
    support, query = noise.normal(size=(5, width)), noise.normal(size=(7, width))
    assert learner.predict(support, np.arange(5), query).probabilities.shape == (7, 5)
    names = np.array(["a", "b", "c", "d", "e"])
    assert set(FewShotClassifier().fit(support, names).predict(support)) == set(names)


def try_the_commands() -> None:
    """A run, an evaluation of it, and a sweep of two."""
    assert "compare" in metabayes()
    metabayes("run", "guide=proto", *SMALL, "hydra.run.dir=run")
    metabayes("evaluate", "run", "eval.samples=2")
    metabayes("run", "-m", "guide=proto", "seed=0,1", *SMALL, "hydra.sweep.dir=sweep")
    metabayes("compare", "sweep")
    assert len(list(Path("sweep").glob("*/results.json"))) == 2


def main(folder: Path, run: Path) -> None:
    import os

    found = {name for name in installed_folders() if not name.endswith(".dist-info")}
    assert found == {"pyro_metabayes"}, f"the wheel must install pyro_metabayes alone, it installs {sorted(found)}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = run.resolve()
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    try_the_library(run)
    try_the_commands()
    print(f"the installed package works: a checkpoint of version 0.1, the commands, a sweep (tried in {folder})")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
