"""The only training loop: meta-training by stochastic gradients, on Lightning Fabric."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from pyro_metabayes import checkpoint
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.diagnostics.collapse import FIGURES, collapse_figures
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.evaluation import EvalSettings, evaluate, noise_of
from pyro_metabayes.interruption import Interruption
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.optimisation import (
    TrainSettings,
    clip_gradients,
    kl_weight_at,
    make_optimizer,
    restore_optimizer,
    set_rates,
)
from pyro_metabayes.scores import scores_of

LOGGED_SAMPLES = 10  # draws of w for the scores and the collapse figures of a logged step
LOGGED_SCORES = ("accuracy", "nll", "mse", "mutual_information")


class MetaTraining:
    """Trains a learner on tasks 0, 1, 2, ... of a stream, and keeps what a resume needs in `folder`.

    `checkpoint.pt` holds the last and the best learner (NLL of `posterior` on the validation
    stream, first of equals), optimiser, random state and step; `metrics.jsonl` a line a logged step.
    """

    def __init__(
        self,
        learner: MetaLearner,
        stream: TaskStream,
        validation: TaskStream,
        settings: TrainSettings,
        folder: Path,
        fabric: Fabric,
        config: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        self.learner, self.stream, self.validation = learner, stream, validation
        self.settings, self.folder, self.fabric, self.config, self.seed = settings, folder, fabric, config, seed
        self.step, self.seconds, self.best_nll = 0, 0.0, math.inf
        self.best: dict[str, Any] = learner.portable()
        self._first_bad = torch.full((), -1, device=fabric.device)
        self._skipped = 0
        learner.to(fabric.device)
        self.module, self.optimizer = fabric.setup(learner, make_optimizer(learner, settings))
        if settings.compile:
            _compile_networks(learner)

    def run(self) -> MetaLearner:
        """Train from wherever the folder's checkpoint stands to the last step; return the best learner."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "checkpoint.pt").exists():
            self._restore()
        _cut_back(self.folder / "metrics.jsonl", self.step)
        started = time.perf_counter() - self.seconds
        bar = tqdm(total=self.settings.steps, initial=self.step, desc="meta-train", unit="step", disable=None)
        with Interruption() as interruption, bar:
            while self.step < self.settings.steps:
                terms = self._step()
                self.seconds = time.perf_counter() - started
                bar.update()
                last = self.step == self.settings.steps
                validate = last or self.step % self.settings.validate_every == 0
                if validate or self.step % self.settings.log_every == 0:
                    line = self._log(terms, validate)
                    if line["loss"] is not None:
                        bar.set_postfix(loss=f"{line['loss']:.4g}", **_shown(line))
                if validate:
                    self._save()
                if interruption.requested:  # after the last step, too: what follows may take long
                    self._save()
                    raise Interrupted(
                        f"interrupted after step {self.step} of {self.settings.steps}; continue with: "
                        f"python -m experiments.run resume={self.folder}"
                    )
        self.learner.load_weights(self.best["weights"])
        return self.learner

    def _step(self) -> dict[str, Tensor]:
        settings = self.settings
        first_task = self.step * settings.tasks_per_step
        episodes = self.stream.batch(first_task, first_task + settings.tasks_per_step)
        set_rates(self.optimizer, settings, self.step)
        self.optimizer.zero_grad()
        # Pyro checks shapes and sites once; each check costs, and a CUDA queue would wait for it.
        with pyro.validation_enabled(self.step == 0):
            terms = self.module(episodes, kl_weight=kl_weight_at(settings.kl_weight, self.step))
        self.step += 1
        loss = terms["loss"]
        if settings.on_nan == "skip" and not torch.isfinite(loss):
            self._skipped += 1
            return terms
        bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.step, self._first_bad)
        self.fabric.backward(loss)
        clip_gradients(self.fabric, self.module, self.optimizer, settings)
        self.optimizer.step()
        return terms

    def _check_finite(self) -> None:
        """Read the mark that a non-finite loss left on the device; never save or log past it."""
        if (bad := int(self._first_bad)) >= 0:
            raise UsageError(
                f"the loss is not finite at step {bad}: training has diverged; lower train.learning_rate or set "
                "train.clip (the last good checkpoint, if any, is kept)"
            )
        for name, parameter in self.learner.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UsageError(
                    f"parameter {name} is not finite after step {self.step}: training has diverged; lower "
                    "train.learning_rate or set train.clip (the last good checkpoint, if any, is kept)"
                )

    def _log(self, terms: Mapping[str, Tensor], validate: bool) -> dict[str, Any]:
        self._check_finite()
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 3)}
        values = {name: value.item() for name, value in terms.items()}
        if math.isfinite(values["loss"]):
            line |= self._figures() | values
            bound = self.learner.objective.bound and line["elbo"] is not None
            line["elbo"] = line["log_likelihood"] - line["kl"] if bound else None
        else:  # a skipped step: its figures are null, for NaN is no JSON
            line |= dict.fromkeys((*values, *LOGGED_SCORES, *FIGURES))
        if validate:
            line |= self._validate()
        if self._skipped:
            line["skipped"] = self._skipped
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    @torch.no_grad()
    def _figures(self) -> dict[str, Any]:
        """Scores of `posterior` and collapse figures on the tasks of this step; draws nothing from its noise."""
        last = self.step * self.settings.tasks_per_step
        episodes = self.learner.featured(self.stream.batch(last - self.settings.tasks_per_step, last))
        with noise_of(self.seed):
            _, likelihood = self.learner.posterior_predictive(episodes.observed(), LOGGED_SAMPLES)
            scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
            figures = {name: scores[name].mean().item() if name in scores else None for name in LOGGED_SCORES}
            return figures | collapse_figures(self.learner, episodes, LOGGED_SAMPLES)

    def _validate(self) -> dict[str, float]:
        """Scores of `posterior` on the validation stream; the best learner is the one of the least NLL."""
        settings = EvalSettings(tasks=self.settings.validation_tasks, samples=LOGGED_SAMPLES, split="val")
        figures = evaluate(self.learner, self.validation, settings, self.seed, progress=False).figures
        if figures["nll"] < self.best_nll:
            self.best_nll, self.best = figures["nll"], self.learner.portable()
        line = {"val_nll": figures["nll"]}
        return line | ({"val_accuracy": figures["accuracy"]["mean"]} if figures["accuracy"] else {})

    def _save(self) -> None:
        self._check_finite()
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "best_nll": self.best_nll,
            "skipped": self._skipped,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        state = {"learner": self.learner.portable(), "best": self.best, "training": training}
        checkpoint.save(self.folder / "checkpoint.pt", state | {"config": dict(self.config)})

    def _restore(self) -> None:
        state = checkpoint.load(self.folder / "checkpoint.pt")
        training = state["training"]
        if training["step"] > self.settings.steps:
            raise UsageError(
                f"expected train.steps >= {training['step']}, which the run in {self.folder} has taken, "
                f"got {self.settings.steps}"
            )
        self.learner.load_weights(state["learner"]["weights"])
        restore_optimizer(self.optimizer, training["optimizer"])
        self.step, self.seconds = training["step"], training["seconds"]
        self.best_nll, self.best, self._skipped = training["best_nll"], state["best"], training["skipped"]
        torch.set_rng_state(training["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(training["random_cuda"])


def _shown(line: Mapping[str, Any]) -> dict[str, str]:
    """What the progress bar says beside the loss."""
    return {"nll": f"{line['nll']:.3f}"} if line["accuracy"] is None else {"accuracy": f"{line['accuracy']:.1%}"}


def _cut_back(path: Path, step: int) -> None:
    """Drop the lines that were logged after the checkpoint, the last of which may be half a line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    checkpoint.write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def _compile_networks(learner: MetaLearner) -> None:
    """torch.compile, in place, the modules that say they are pure functions of tensors, as Pyro's handlers are not."""
    for module in learner.modules():
        if getattr(module, "pure", False):
            module.compile()
