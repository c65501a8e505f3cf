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
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.untrusted import expecting, within
from pyro_metabayes.training import log
from pyro_metabayes.training.data_parallel import TaskShard
from pyro_metabayes.training.interruption import Interruption
from pyro_metabayes.training.nonfinite import NonFiniteMonitor
from pyro_metabayes.training.optimisation import (
    TrainSettings,
    clip_gradients,
    compile_networks,
    kl_weight_at,
    make_optimizer,
    set_rates,
    step_unless,
)
from pyro_metabayes.training.run_state import RunState
from pyro_metabayes.training.step_metrics import LOGGED_METRICS, measure, metric_means, validation_metrics


class MetaTraining:
    """Trains a learner on tasks 0, 1, 2, ... of a stream; `folder` holds the state needed to resume.

    `checkpoint.pt` holds the last learner and the best one (smallest NLL of `posterior` on the validation
    stream, the first of equals), the optimiser, the random state and the step. `metrics.jsonl` holds one line per
    logged step. On a Fabric of several processes each process takes an equal part of the tasks of a step; only the
    first process logs and writes.
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
        self.shard = TaskShard(fabric.global_rank, fabric.world_size, settings.tasks_per_step)
        initial = learner.portable()
        learner.to(fabric.device)
        self._nonfinite = NonFiniteMonitor(learner, fabric.device)
        self._saved_step = 0
        self.module, self.optimizer = fabric.setup(learner, make_optimizer(learner, settings))
        self.state = RunState(learner, self.optimizer, initial, fabric.device)
        if settings.compile:
            compile_networks(learner)

    def run(self) -> MetaLearner:
        """Train from the checkpoint in the folder, if any, to the last step; return the best learner.

        Of no step at all the learner is the untrained one, which is saved as it is.
        """
        self._begin()
        state, num_steps = self.state, self.settings.steps
        started = time.perf_counter() - state.seconds
        bar = tqdm(total=num_steps, initial=state.step, desc="meta-train", unit="step", disable=None)
        if not num_steps:
            self._save()
        with Interruption() as interruption, bar, self._nonfinite.watch(self._progress):
            while state.step < num_steps:
                terms = self._step()
                state.seconds = time.perf_counter() - started
                bar.update()
                validate = state.step == num_steps or state.step % self.settings.validate_every == 0
                if validate or state.step % self.settings.log_every == 0:
                    bar.set_postfix(**self._log(terms, validate))
                if validate:
                    self._save()
                # Checked after the last step too: the evaluation that follows may take long.
                if self.shard.any(interruption.requested):
                    self._interrupt()
        self.learner.load_weights(state.best["weights"])
        return self.learner

    def _begin(self) -> None:
        """Restore the checkpoint in the folder, if any; other processes receive the state of the first."""
        if self.shard.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            if within(self.folder, "checkpoint.pt").exists():
                self._restore()
            log.truncate_after(within(self.folder, "metrics.jsonl"), self.state.step)
        if self.shard.num_processes > 1:
            self._load(self.shard.broadcast(self.state.state_dict()))

    def _step(self) -> dict[str, Tensor]:
        """One step of the optimiser; the terms of its loss, means over the tasks of all processes."""
        terms = self._backward()
        finite = self._nonfinite.finite_terms(terms)
        clip_gradients(self.fabric, self.module, self.optimizer, self.settings)
        if self.settings.on_nan == "skip":
            bad = ~torch.stack(list(finite.values())).all()
            step_unless(bad, self.optimizer)
            self.state.skipped_steps += bad
            finite = {}
        else:
            self.optimizer.step()
        self._nonfinite.mark(self.state.step, finite | self._nonfinite.finite_parameters())
        return terms

    def _backward(self) -> dict[str, Tensor]:
        """Gradients of the loss on the tasks of the next step, and the terms of the loss."""
        state, settings = self.state, self.settings
        episodes = self.stream.batch(*self.shard.task_range(state.step))
        set_rates(self.optimizer, settings, state.step)
        self.optimizer.zero_grad()
        # Pyro checks shapes and sites in the first step only: each check costs time and waits for the device.
        with pyro.validation_enabled(state.step == 0), self.shard.noise():
            terms = self.module(episodes, kl_weight=kl_weight_at(settings.kl_weight, state.step))
        state.step += 1
        self.fabric.backward(terms["loss"])  # DDP averages the gradients of all processes
        return self.shard.mean(terms)

    def _progress(self) -> tuple[int, str]:
        """The last step taken, and the checkpoint that training can continue from."""
        where = f"of step {self._saved_step} in {self.folder}" if self._saved_step else "none yet"
        return self.state.step, f"the last good checkpoint: {where}"

    def _log(self, terms: Mapping[str, Tensor], validate: bool) -> dict[str, str]:
        """Append the line of this step; return its values for the progress bar."""
        self._nonfinite.check(self._progress()[1])  # a non-finite step is neither logged nor saved
        if not self.shard.is_first:
            return {}
        line: dict[str, Any] = {"step": self.state.step, "seconds": round(self.state.seconds, 3)}
        line |= self._metrics({name: value.item() for name, value in terms.items()})
        if validate:
            validation = validation_metrics(self.learner, self.validation, self.settings.validation_tasks, self.seed)
            self.state.update_best(validation["val_nll"])
            line |= validation
        if skipped := self.state.skipped:
            line["skipped"] = skipped
        line = log.null_nonfinite(line)
        log.append(self.folder / "metrics.jsonl", line)
        return log.progress_values(line)

    def _metrics(self, terms: dict[str, float]) -> dict[str, Any]:
        """Terms of the loss and metrics of this step; all null for a skipped step."""
        if not math.isfinite(terms["loss"]):
            return dict.fromkeys((*terms, *LOGGED_METRICS))
        metrics = metric_means(*self._measure()) | terms
        bound = self.learner.objective.bound and metrics["elbo"] is not None
        metrics["elbo"] = metrics["log_likelihood"] - metrics["kl"] if bound else None
        return metrics

    def _measure(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scores and spreads on the tasks of this step, on the device."""
        stop = self.state.step * self.settings.tasks_per_step
        return measure(self.learner, self.stream.batch(stop - self.settings.tasks_per_step, stop), self.seed)

    def _interrupt(self) -> None:
        self._save()
        raise Interrupted(
            f"interrupted after step {self.state.step} of {self.settings.steps}; continue with: "
            f"python -m experiments.run resume={self.folder}"
        )

    def _save(self) -> None:
        self._nonfinite.check(self._progress()[1])
        if self.shard.is_first:
            checkpoint.save(self.folder / "checkpoint.pt", self.state.state_dict() | {"config": dict(self.config)})
        self._saved_step = self.state.step

    def _restore(self) -> None:
        """Continue from the checkpoint in the folder."""
        saved = checkpoint.load(self.folder / "checkpoint.pt")
        with expecting(f"the checkpoint of an interrupted run in {self.folder}"):
            self._load(saved)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.state.load_state_dict(state, self.settings.steps, self.folder)
        self._saved_step = self.state.step
