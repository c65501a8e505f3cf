"""The only training loop: meta-training by stochastic gradients, on Lightning Fabric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.diagnostics.collapse import FIGURES, spreads_of, summary
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import noise_of, random_states, set_random_states
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import count_of, expecting, within
from pyro_metabayes.training import log as metrics
from pyro_metabayes.training.data_parallel import Share
from pyro_metabayes.training.interruption import Interruption
from pyro_metabayes.training.nonfinite import Divergence
from pyro_metabayes.training.optimisation import (
    TrainSettings,
    clip_gradients,
    compile_networks,
    kl_weight_at,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
    set_rates,
    step_unless,
)

LOGGED_SAMPLES = 10  # draws of w for the scores and the collapse figures of a logged step
LOGGED_SCORES = ("accuracy", "nll", "mse", "mutual_information")


class MetaTraining:
    """Trains a learner on tasks 0, 1, 2, ... of a stream, and keeps what a resume needs in `folder`.

    `checkpoint.pt` holds the last and the best learner (NLL of `posterior` on the validation
    stream, first of equals), optimiser, random state and step; `metrics.jsonl` a line a logged step.
    On a Fabric of several processes each takes its share of a step's tasks, and the first alone logs and writes.
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
        self.share = Share(fabric.global_rank, fabric.world_size, settings.tasks_per_step)
        self.step, self.seconds, self.best_nll = 0, 0.0, math.inf
        self.best: dict[str, Any] = learner.portable()
        self._skipped = torch.zeros((), dtype=torch.long, device=fabric.device)
        learner.to(fabric.device)
        self._divergence = Divergence(learner, fabric.device)
        self._saved = 0  # the step that the checkpoint is of
        self.module, self.optimizer = fabric.setup(learner, make_optimizer(learner, settings))
        if settings.compile:
            compile_networks(learner)

    def run(self) -> MetaLearner:
        """Train from wherever the folder's checkpoint stands to the last step; return the best learner."""
        self._begin()
        started = time.perf_counter() - self.seconds
        bar = tqdm(total=self.settings.steps, initial=self.step, desc="meta-train", unit="step", disable=None)
        with Interruption() as interruption, bar, self._divergence.watch(self._stand):
            while self.step < self.settings.steps:
                terms = self._step()
                self.seconds = time.perf_counter() - started
                bar.update()
                validate = self.step == self.settings.steps or self.step % self.settings.validate_every == 0
                if validate or self.step % self.settings.log_every == 0:
                    bar.set_postfix(**self._log(terms, validate))
                if validate:
                    self._save()
                if self.share.any(interruption.requested):  # after the last step, too: what follows may take long
                    self._save()
                    raise Interrupted(
                        f"interrupted after step {self.step} of {self.settings.steps}; continue with: "
                        f"python -m experiments.run resume={self.folder}"
                    )
        self.learner.load_weights(self.best["weights"])
        return self.learner

    def _begin(self) -> None:
        """Go on from the folder's checkpoint, if there is one; the other processes from where the first stands."""
        if self.share.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            if within(self.folder, "checkpoint.pt").exists():
                self._restore()
            metrics.cut_back(within(self.folder, "metrics.jsonl"), self.step)
        if self.share.of > 1:
            state = self.share.of_first(self._state())
            self._restore_from(state, state["training"])

    def _step(self) -> dict[str, Tensor]:
        settings = self.settings
        episodes = self.stream.batch(*self.share.of_step(self.step))
        set_rates(self.optimizer, settings, self.step)
        self.optimizer.zero_grad()
        # Pyro checks shapes and sites once; each check costs, and a CUDA queue would wait for it.
        with pyro.validation_enabled(self.step == 0), self.share.noise(self.learner.model, episodes):
            terms = self.module(episodes, kl_weight=kl_weight_at(settings.kl_weight, self.step))
        self.step += 1
        self.fabric.backward(terms["loss"])  # DDP averages the gradients of all processes
        terms = self.share.mean(terms)
        finite = self._divergence.of_terms(terms)
        clip_gradients(self.fabric, self.module, self.optimizer, settings)
        if settings.on_nan == "skip":
            bad = ~torch.stack(list(finite.values())).all()
            step_unless(bad, self.optimizer)
            self._skipped += bad
            finite = {}
        else:
            self.optimizer.step()
        self._divergence.mark(self.step, finite | self._divergence.of_parameters())
        return terms

    @property
    def skipped(self) -> int:
        """How many steps were left out for a loss or a gradient that was not finite (train.on_nan=skip)."""
        return int(self._skipped)

    def _stand(self) -> tuple[int, str]:
        """The last step taken, and what there is to go on with."""
        where = f"of step {self._saved} in {self.folder}" if self._saved else "none yet"
        return self.step, f"the last good checkpoint: {where}"

    def _log(self, terms: Mapping[str, Tensor], validate: bool) -> dict[str, str]:
        """Append the line of this step; return what of it the progress bar shows."""
        self._divergence.check(self._stand()[1])  # never past a step that was not finite
        if not self.share.first:
            return {}
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 3)}
        values = {name: value.item() for name, value in terms.items()}
        if math.isfinite(values["loss"]):
            line |= self._read(*self._measured()) | values
            bound = self.learner.objective.bound and line["elbo"] is not None
            line["elbo"] = line["log_likelihood"] - line["kl"] if bound else None
        else:  # a skipped step: its figures are null, for NaN is no JSON
            line |= dict.fromkeys((*values, *LOGGED_SCORES, *FIGURES))
        if validate:
            line |= self._validate()
        if skipped := self.skipped:
            line["skipped"] = skipped
        line = metrics.finite(line)
        metrics.append(self.folder / "metrics.jsonl", line)
        return metrics.shown(line)

    @torch.no_grad()
    def _measured(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scores of `posterior` and spreads on the tasks of this step, on the device; no number of its noise is drawn.

        Parameters that overflow give a metric too: null.
        """
        last = self.step * self.settings.tasks_per_step
        episodes = self.learner.featured(self.stream.batch(last - self.settings.tasks_per_step, last))
        with noise_of(self.seed), pyro.validation_enabled(False):
            _, likelihood = self.learner.posterior_predictive(episodes.observed(), LOGGED_SAMPLES)
            scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
            return scores, spreads_of(self.learner, episodes, LOGGED_SAMPLES)

    @staticmethod
    def _read(scores: Mapping[str, Tensor], spreads: Mapping[str, Tensor]) -> dict[str, Any]:
        """Their means, on the host."""
        means = {name: scores[name].mean().item() if name in scores else None for name in LOGGED_SCORES}
        return means | summary(spreads)

    def _validate(self) -> dict[str, float]:
        """Scores of `posterior` on the validation stream; the best learner is the one of the least NLL."""
        settings = EvalSettings(tasks=self.settings.validation_tasks, samples=LOGGED_SAMPLES, split="val")
        figures = evaluate(self.learner, self.validation, settings, self.seed, progress=False).figures
        if figures["nll"] < self.best_nll:
            self.best_nll, self.best = figures["nll"], self.learner.portable()
        line = {"val_nll": figures["nll"]}
        return line | ({"val_accuracy": figures["accuracy"]["mean"]} if figures["accuracy"] else {})

    def _save(self) -> None:
        self._divergence.check(self._stand()[1])  # never past a step that was not finite
        if self.share.first:
            checkpoint.save(self.folder / "checkpoint.pt", self._state() | {"config": dict(self.config)})
        self._saved = self.step

    def _state(self) -> dict[str, Any]:
        """All that the steps to come hang on. There is one random state, of every process."""
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "best_nll": self.best_nll,
            "skipped": self.skipped,
            "optimizer": optimizer_state(self.optimizer, self.learner),
            "random": torch.get_rng_state(),
            "random_device": random_states(self.fabric.device),
        }
        return {"learner": self.learner.portable(), "best": self.best, "training": training}

    def _restore(self) -> None:
        state = checkpoint.load(self.folder / "checkpoint.pt")
        with expecting(f"the checkpoint of an interrupted run in {self.folder}"):
            self._restore_from(state, state["training"])

    def _restore_from(self, state: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        step, taken = count_of(training["step"]), f"which the run in {self.folder} has taken"
        if step > self.settings.steps:
            raise UsageError(f"expected train.steps >= {step}, {taken}, got {self.settings.steps}")
        self.learner.refuse_other(state["best"]["weights"])
        self.learner.load_weights(state["learner"]["weights"])
        restore_optimizer(self.optimizer, training["optimizer"], self.learner, state["learner"]["weights"])
        self.step, self._saved, self.seconds = step, step, float(training["seconds"])
        self.best_nll, self.best = float(training["best_nll"]), state["best"]
        self._skipped.fill_(count_of(training["skipped"]))
        torch.set_rng_state(training["random"])
        # The first name is that of version 0.1.
        set_random_states(self.fabric.device, training.get("random_cuda", training.get("random_device", [])))
