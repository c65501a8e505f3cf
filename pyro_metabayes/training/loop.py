"""The loop of meta-training by stochastic gradients, on Lightning Fabric."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_metabayes.backbone import note_held_statistics
from pyro_metabayes.data.stream import Tasks, TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import Interrupted, how_many
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import seeded
from pyro_metabayes.training.data_parallel import Gradients, TaskShard
from pyro_metabayes.training.interruption import Interruption
from pyro_metabayes.training.log import Log, progress_values
from pyro_metabayes.training.nonfinite import NonFiniteMonitor
from pyro_metabayes.training.optimisation import TrainSettings, clip_gradients, kl_weight_at, step_unless
from pyro_metabayes.training.optimizer_state import Optimisation, OptimisationBySettings
from pyro_metabayes.training.progress import PlainLines, progress
from pyro_metabayes.training.run_state import RunState
from pyro_metabayes.training.step_metrics import step_metrics, validation_metrics
from pyro_metabayes.validation.trained_on import TaskRange

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Callback = Callable[[Mapping[str, Any]], object]


class MetaTraining:
    """Training loop of a learner on tasks 0, 1, 2, ... of a stream. The method `run` trains or resumes.

    `checkpoint.pt` in the folder has the last and the best learner (smallest validation NLL), the optimiser, the random
    state and the step. `metrics.jsonl` has one line per logged step. Every process computes an equal part of the tasks
    of a step. Only the first process validates, calls callbacks and writes files.

    Args:
        learner: the learner to train.
        stream: training tasks.
        validation: validation tasks.
        settings: training settings.
        folder: folder of checkpoint and log; None: no files are written.
        fabric: Lightning Fabric, which has the device and the processes.
        config: plain values to store in the checkpoint.
        seed: seed of the random draws for the metrics of logged steps and validations.
        optimisation: the optimiser with its learning-rate schedule; None: as `settings` describes.
        accumulate: number of batches into which each process divides its tasks of a step (`Gradients`).
        patience: number of validations without a smaller NLL after which training ends; None: all steps are taken.
        callbacks: functions that are called with the metrics of each logged step.
    """

    def __init__(
        self,
        learner: MetaLearner,
        stream: Tasks,
        validation: TaskStream,
        settings: TrainSettings,
        folder: Path | None,
        fabric: Fabric,
        config: Mapping[str, Any],
        seed: int = 0,
        optimisation: Optimisation | None = None,
        accumulate: int = 1,
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.learner, self.stream, self.validation, self.settings = learner, stream, validation, settings
        self.folder, self.fabric, self.config, self.seed = folder, fabric, config, seed
        self.patience, self.callbacks = patience, callbacks
        self.shard = TaskShard(fabric.global_rank, fabric.world_size, settings.tasks_per_step)
        initial = learner.portable()
        learner.to(fabric.device)
        self._nonfinite = NonFiniteMonitor(learner, fabric.device)
        self._optimisation = optimisation or OptimisationBySettings(learner, settings)
        self.module, self.optimizer = fabric.setup(learner, self._optimisation.optimizer)
        self._optimisation.optimizer = self.optimizer
        self._gradients = Gradients(fabric, self.module, stream, self.shard, accumulate)
        self.state = RunState(learner, self._optimisation, initial, fabric.device)
        self.log = Log(folder if self.shard.is_first else None)

    def run(self) -> MetaLearner:
        """Train, or continue from the checkpoint in the folder, until the training ends. Return the best learner."""
        self._begin()
        state, num_steps = self.state, self.settings.steps
        started = time.perf_counter() - state.seconds
        meter = progress if self.shard.is_first else partial(PlainLines, interval=math.inf)
        bar = meter("meta-train", "steps", num_steps, state.step)
        if not num_steps:
            self._save()
        with Interruption() as interruption, bar, self._nonfinite.watch(self._progress):
            ended = self._ended()
            while not ended:
                terms = self._step()
                state.seconds = time.perf_counter() - started
                bar.update()
                validate = state.step == num_steps or state.step % self.settings.validate_every == 0
                if validate or state.step % self.settings.log_every == 0:
                    bar.set_postfix(**self._log(terms, validate))
                if validate:
                    self._save()
                ended = validate and self._ended()
                # Also checked after the last step, since the evaluation that follows may take long.
                if self.shard.any(interruption.requested):
                    self._interrupt()
        self.learner.load_weights(state.best["weights"])
        return self.learner

    def _ended(self) -> bool:
        return self.state.step >= self.settings.steps or self.log.out_of_patience(self.patience)

    def _begin(self) -> None:
        """Restore the checkpoint in the folder, if there is one, and send the state to all processes."""
        if self.shard.is_first:
            note_held_statistics(self.learner.backbone)
        if self.shard.is_first and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.state.restore(self.folder, self.config, self.settings.steps)
            self.log.resume(self.state.step)
            if self.state.step and self._ended():
                done = f"had already finished after {how_many(self.state.step, 'step')}"
                print(f"note: the training in {self.folder} {done}", file=sys.stderr)
        if self.shard.num_processes > 1:
            self.state.load_state_dict(self.shard.broadcast(self.state.state_dict()), self.settings.steps, self.folder)
            self.log.lines = self.shard.broadcast(self.log.lines)
        self._saved_step = self.state.step

    def _step(self) -> dict[str, Tensor]:
        """Take a step of the optimiser. Return the terms of the loss in nats per task, means over all processes."""
        state, settings = self.state, self.settings
        self._optimisation.start_step(state.step)
        self.learner.zero_grad()  # the optimiser may lack some of the parameters, so that its zero_grad misses them
        terms = self._gradients.add(state.step, kl_weight_at(settings.kl_weight, state.step))
        state.step += 1
        if state.step == 1 and getattr(self.stream, "one_shape", True):
            self.learner.trained_on = TaskRange.of(self._last_tasks())
        finite = self._nonfinite.finite_terms(terms)
        clip_gradients(self.fabric, self.module, self.optimizer, settings)
        if settings.on_nan == "skip":
            bad = ~torch.stack(list(finite.values())).all()
            step_unless(bad, self.optimizer)
            state.skipped_steps += bad
            finite = {}
        else:
            self.optimizer.step()
        self._optimisation.end_step()
        self._nonfinite.mark(state.step, finite | self._nonfinite.finite_parameters())
        return terms

    def _progress(self) -> tuple[int, str]:
        """Return the number of steps taken, and a description of the last checkpoint for messages."""
        where = f"of step {self._saved_step} in {self.folder}" if self._saved_step else "none yet"
        return self.state.step, f"the last good checkpoint: {where}"

    def _log(self, terms: Mapping[str, Tensor], validate: bool) -> dict[str, str]:
        """Log the metrics of this step. Return the values for the progress bar."""
        self._nonfinite.check(self._progress()[1])  # raises an error, so that a diverged training is not logged
        line = self.shard.broadcast(self._line(terms, validate) if self.shard.is_first else {})
        if validate:
            self.state.update_best(line["val_nll"])
            self._optimisation.end_validation(line["val_nll"])
        line = self.log.append(line)
        for callback in self.callbacks if self.shard.is_first else ():
            with seeded(self.seed):  # random numbers of a callback must not change the training
                callback(line)
        return progress_values(line)

    def _line(self, terms: Mapping[str, Tensor], validate: bool) -> dict[str, Any]:
        """Compute the metrics of this step and, if `validate`, the metrics of a validation."""
        line: dict[str, Any] = {"step": self.state.step, "seconds": round(self.state.seconds, 3)}
        line |= step_metrics(self.learner, self._last_tasks, {k: v.item() for k, v in terms.items()}, self.seed)
        if validate:
            line |= validation_metrics(self.learner, self.validation, self.settings.validation_tasks, self.seed)
        if skipped := self.state.skipped:
            line["skipped"] = skipped
        return line

    def _last_tasks(self) -> Episodes:
        """Return the tasks that all processes together used in the last step."""
        stop = self.state.step * self.settings.tasks_per_step
        return self.stream.batch(stop - self.settings.tasks_per_step, stop).to(self.fabric.device)

    def _interrupt(self) -> None:
        self._save()
        go_on = f"the same call continues from {self.folder}" if self.folder else "without folder= nothing is saved"
        raise Interrupted(f"interrupted after step {self.state.step} of {self.settings.steps}; {go_on}")

    def _save(self) -> None:
        self._nonfinite.check(self._progress()[1])
        if self.folder is not None and self.shard.is_first:
            self.state.save(self.folder, self.config)
        self._saved_step = self.state.step if self.folder is not None else 0
