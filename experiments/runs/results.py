"""Results of a run: results.json, and the scores of each task in tasks.npz."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

import pyro_metabayes
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.cli.overrides import flatten
from pyro_metabayes.experiments.runs.grouped_data import evaluated_groups, log_likelihoods
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretraining.restored_features import hash_of_weights
from pyro_metabayes.storage import checkpoint

ROOT = Path(__file__).parents[2]  # root of the repository, in a checkout
CODE = ("guides/*.py", "models/*.py", "pyro_metabayes/*.py", "experiments/*.py", "experiments/*.yaml")
OWN_PRIORS = {"models.lwof.Model": "mixture"}  # names of the priors that are part of a model


def results_of(setup: RunSetup, evaluation: Evaluation, train_seconds: float | None, skipped: int) -> dict[str, Any]:
    """Return the content of results.json. Accuracies are fractions, log scores are in nats, undefined metrics are null.

    Args:
        setup: the run.
        evaluation: the metrics and scores of its learner.
        train_seconds: duration of the training; None if the run is only evaluated again.
        skipped: the number of training steps that were skipped.
    """
    metrics = dict(evaluation.metrics)
    seconds = metrics.pop("seconds")
    config, learner = setup.config, setup.learner
    return {
        "guide": config.choices.get("guide"),
        "prior": prior_name(config, learner),
        "data": config.choices.get("data"),
        "split": config.eval.split,
        "division": division_of(setup),
        "evaluated_groups": evaluated_groups(setup.tasks.source, config.eval.split, setup.new_data),
        **dataclasses.asdict(config.task),
        "base_classes": learner.model.num_base_classes if isinstance(learner.model, HasBaseClasses) else None,
        "tasks": config.eval.tasks,
        **metrics,
        "constant_rmse": setup.tasks.constant_rmse(),
        "log_likelihood": None if setup.new_data else log_likelihoods(setup.tasks.source, learner, setup.device),
        "response": setup.tasks.response(),
        "objective": learner.objective.name if evaluation.metrics["elbo"] is not None else "predictive",
        "kl_weight": trained_weight(setup),
        "transductive": learner.guide.transductive,
        "steps": config.train.steps,
        "skipped": skipped,
        "seconds": {"train": train_seconds, "eval": seconds},
        "episodes_per_second": _tasks_per_second(config, train_seconds, seconds),
        **_circumstances(setup),
    }


def trained_weight(setup: RunSetup) -> Any:
    """Return the KL weight of the training, a number or a schedule; None for an objective without a KL."""
    return setup.config.train.kl_weight if setup.learner.objective.bound else None


def division_of(setup: RunSetup) -> str | None:
    """Return how a data set is divided into splits: by "classes", by "rows", or "none" (all splits are equal).

    The result is None for simulators, data=groups and data sets with several domains.
    """
    return setup.tasks.source.bank.division if isinstance(setup.tasks.source, BankSampler) else None


def _tasks_per_second(config: Config, train_seconds: float | None, eval_seconds: float) -> dict[str, float | None]:
    """Return tasks per second in training (None if the run is only evaluated again) and in evaluation."""
    num_trained = config.train.steps * config.train.tasks_per_step
    return {
        "train": num_trained / train_seconds if train_seconds else None,
        "eval": config.eval.tasks / eval_seconds,
    }


def _circumstances(setup: RunSetup) -> dict[str, Any]:
    """Return the entries of results.json on which the metrics depend: seed, device, versions, hashes, settings."""
    return {
        "seed": setup.config.seed,
        "device": str(setup.device),
        "devices": setup.config.trainer.devices,
        "machine": machine(setup.device),
        "versions": versions(),
        "commit": commit(),
        "data_fingerprint": setup.data_fingerprint,
        "backbone_fingerprint": backbone_fingerprint(setup.learner),
        "config": dataclasses.asdict(setup.config),
    }


def backbone_fingerprint(learner: MetaLearner) -> str:
    """Return a hash of the weights of the backbone. Runs with equal hashes share one training of the backbone."""
    return hash_of_weights(learner.backbone)


def prior_name(config: Config, learner: MetaLearner) -> str | None:
    """Return the name of the prior: "flat", the prior that is part of the model, or the prior of the settings."""
    name = (config.prior or {}).get("_target_", "").rpartition(".")[2].lower() or None
    return name if name == "flat" else OWN_PRIORS.get(config.model["_target_"], name)


def write_results(folder: Path, results: dict[str, Any], evaluation: Evaluation) -> None:
    """Write tasks.npz (each score of each task) and results.json, the last file of a finished run."""
    nonfinite = [name for name, value in flatten(results) if isinstance(value, float) and not math.isfinite(value)]
    if nonfinite:
        raise UsageError(
            f"expected finite scores, got NaN or infinity ({', '.join(nonfinite[:3])}): the training or an inner loop "
            "has diverged; lower guide.step_size, guide.num_steps or train.learning_rate"
        )

    def scores(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy appends .npz to a file name
            np.savez_compressed(file, allow_pickle=False, **evaluation.per_task)

    checkpoint.write_atomically(folder / "tasks.npz", scores)
    text = json.dumps(results, indent=2, allow_nan=False)
    checkpoint.write_atomically(folder / "results.json", lambda temporary: temporary.write_text(text + "\n"))


def versions() -> dict[str, str]:
    return {
        "pyro_metabayes": pyro_metabayes.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
    }


def machine(device: torch.device) -> str:
    """Return the name of the GPU, or the name and the number of cores of the processor."""
    if device.type != "cpu" and (name := getattr(torch.get_device_module(device.type), "get_device_name", None)):
        return str(name(device))
    with contextlib.suppress(OSError):
        if match := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return f"{match[1]}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str | None:
    """Return the Git commit of the code; None outside a repository.

    It ends in "-dirty" if a tracked file differs, or if the code has an untracked file, such as a new guide.
    """
    if not (ROOT / ".git").exists():  # in an installed package, an enclosing repository is another project's
        return None
    try:
        described = _git("describe", "--always", "--dirty", "--abbrev=12", "--match=")
        new_files = _git("ls-files", "--others", "--exclude-standard", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{described.removesuffix('-dirty')}-dirty" if new_files else described or None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
