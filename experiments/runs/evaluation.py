"""Evaluation of a finished run with changed settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.evaluation.evaluate import evaluate
from pyro_metabayes.experiments.cli.config import Config, saved_config
from pyro_metabayes.experiments.runs.notes import print_notes
from pyro_metabayes.experiments.runs.restore_run import finished_checkpoint, restore_learner, restore_run
from pyro_metabayes.experiments.runs.results import backbone_fingerprint, results_of, write_results
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.storage.paths import user_path

PATH = "data.path="
LONGEST = 200  # largest number of bytes of the name of a folder without the hash; file systems allow 255


def folder_name(settings: Sequence[str]) -> str:
    """Return the folder name of an evaluation: its changed settings ("again" if there are none), and perhaps a hash.

    The hash is appended if the settings contain data.path or a slash, or are long. A path is shortened to the name of
    its file. The hash is computed from the absolute path, so it does not depend on the current folder.
    """
    shown = [f"{PATH}{Path(path).name}" if (path := _path_of(setting)) else setting for setting in settings]
    name = ",".join(shown) or "again"
    if not any(map(_path_of, settings)) and "/" not in name and len(name.encode()) <= LONGEST:
        return name
    exact = [f"{PATH}{user_path(path).resolve()}" if (path := _path_of(setting)) else setting for setting in settings]
    start = name.replace("/", "_").encode()[:LONGEST].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(json.dumps(exact).encode()).hexdigest()[:8]}"


def _path_of(setting: str) -> str:
    """Return FILE for the setting data.path=FILE; '' for other settings."""
    return setting.removeprefix(PATH) if setting.startswith(PATH) else ""


def evaluate_run(folder: Path, config: Config, out: Path) -> dict[str, Any]:
    """Evaluate a run, write the results to the folder `out`, and return them."""
    results, evaluation = score_run(folder, config)
    write_results(out, results, evaluation)
    return results


def evaluated(setup: RunSetup, learner: MetaLearner, others: Sequence[MetaLearner] = ()) -> Evaluation:
    """Evaluate a learner on the tasks of a run, with the settings eval.* of the run.

    Args:
        setup: the run, with its tasks.
        learner: the trained learner.
        others: further learners, whose predictions are averaged with those of the learner.
    """
    config, tasks = setup.config, setup.tasks
    return evaluate(
        learner,
        tasks.stream(config.eval.split, evaluation=True),
        config.eval,
        config.seed,
        truth=tasks.truth,
        doubled=tasks.twice,
        validation=tasks.validation if config.eval.temperature else None,
        others=others,
    )


def others_of(setup: RunSetup) -> list[MetaLearner]:
    """Restore the learners of the runs in eval.ensemble.

    Raises:
        UsageError: a run has another backbone, so its learner cannot read the features of the tasks.
    """
    own = backbone_fingerprint(setup.learner)
    learners: list[MetaLearner] = []
    for name in setup.config.eval.ensemble:
        folder = user_path(name)
        learner = restore_run(folder, saved_config(folder, [])).learner
        if backbone_fingerprint(learner) != own:
            raise UsageError(
                f"expected runs with the same backbone in eval.ensemble, got {name} with another backbone; train "
                f"{name} with the same pretrain settings on the same machine"
            )
        learners.append(learner)
    return learners


def score_run(folder: Path, config: Config) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate the best learner of a run.

    Args:
        folder: the folder of the run.
        config: the configuration. Compared with the training, settings that are not learned may differ.

    Returns:
        The content of results.json, and the scores of each task.
    """
    checkpoint = finished_checkpoint(folder, config)
    setup = restore_learner(checkpoint, config)
    print_notes(setup)
    evaluation = evaluated(setup, setup.learner, others_of(setup))
    return results_of(setup, evaluation, None, checkpoint["training"]["skipped"]), evaluation
