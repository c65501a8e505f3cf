"""Training of a learner by a Python function. The commands use it too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_metabayes.data.sources.given import Batches, BatchStream, Fixed, task_stream
from pyro_metabayes.data.stream import Tasks, TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.specification.from_parts import described
from pyro_metabayes.specification.parts import Parts
from pyro_metabayes.storage.lock import alone_in, made_folder
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.training.data_parallel import refuse_unequal_shards
from pyro_metabayes.training.log import History
from pyro_metabayes.training.loop import Callback, MetaTraining
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.training.optimizer_state import Optimisation
from pyro_metabayes.training.user_optimizer import OptimisationByUser
from pyro_metabayes.validation.arguments import check_callables, check_instance, check_integers, check_not_negative
from pyro_metabayes.validation.same_training import FIT, description_of_tasks

VALIDATION_TASKS = 100  # default for an endless stream
DESCRIBED_TASKS = 32  # number of validation tasks that are compared when a training is continued


def fit(
    learner: MetaLearner,
    train: Fixed | Batches,
    val: Fixed,
    *,
    steps: int,
    optimiser: Optimizer | Optimisation | None = None,
    scheduler: LRScheduler | None = None,
    accumulate: int = 1,
    callbacks: Sequence[Callback] = (),
    patience: int | None = None,
    folder: Path | str | None = None,
    batch_size: int = 16,
    kl_weight: float | Mapping[str, float] = 1.0,
    clip: float = 0.0,
    clip_value: float = 0.0,
    clip_each: float = 0.0,
    on_nan: str = "stop",
    log_every: int = 50,
    validate_every: int = 100,
    validation_tasks: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> History:
    """Train a learner in place. At the end the learner has the weights with the smallest validation NLL.

        learner = MetaLearner.build(network, "sib", prior="gaussian", objective="elbo", input_shape=[3, 32, 32])
        optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-3)
        history = fit(learner, bank.tasks("train"), bank.tasks("val"), steps=1000, optimiser=optimiser, folder="runs/a")

    Training uses torch's random numbers (`torch.manual_seed`) and the device of the learner. The folder gets the files
    `checkpoint.pt` and `metrics.jsonl`. `MetaLearner.load(folder)` reads the best learner.

    With a folder, the same call continues an interrupted training, with the same result bit for bit. Construct learner,
    optimiser and scheduler as before. Only `steps`, `patience`, `log_every` and `callbacks` may change.

    For several processes, start a script with torchrun and call `torch.distributed.init_process_group()` before `fit`.
    Each process computes an equal part of the tasks. The first one also validates, calls callbacks and writes files.

    Args:
        learner: the learner to train.
        train: training tasks. A stream: each batch takes the next `batch_size` tasks. Episodes, or a list of Episodes:
            the tasks are repeated. An iterable of batches, or a function from the batch number 0, 1, ... to a batch:
            while a batch is constructed, torch's seed is the batch number.
        val: validation tasks: a stream of tasks, Episodes, or a list of Episodes.
        steps: number of steps of the optimiser; 0: the learner is saved untrained.
        optimiser: a torch optimiser of parameters of the learner whose step needs no closure, or an `Optimisation`.
            Move the learner to its device before you construct the optimiser. None: Adam with a cosine schedule of the
            learning rate from 1e-3 to 0.
        scheduler: any torch scheduler of the optimiser. Its `step` is called after every step, or after every
            validation with the NLL for ReduceLROnPlateau. None: constant learning rates.
        accumulate: number of batches per step. The gradients of the batches are averaged.
        callbacks: functions of the metrics of a logged step (an entry of `History.lines`), called at every logged step.
            Their random numbers do not change the training.
        patience: number of successive validations without a smaller NLL after which training ends; None: never.
        folder: folder of checkpoint and log; None: no files are written.
        batch_size: number of tasks per batch; unused if `train` consists of batches.
        kl_weight: weight of the KL term of the loss, or {"start": 1e-6, "end": 1.0, "steps": 1000}: linear warm-up.
        clip: largest norm of the gradient; 0: no clipping.
        clip_value: largest absolute entry of the gradient; entries are clipped before norms. 0: no clipping.
        clip_each: largest norm of the gradient of each parameter; 0: no clipping.
        on_nan: reaction to a loss or gradient that is not finite: "stop" the training, or "skip" the step.
        log_every: number of steps between two logged lines.
        validate_every: number of steps between two validations and saves. The last step is always validated.
        validation_tasks: number of validation tasks; None: all tasks of `val`, or 100 tasks if `val` is endless.
        seed: seed of the random draws for the metrics of logged steps and validations.
        config: plain values to store in the checkpoint. The caller must then have locked and checked the folder. None:
            `fit` locks the folder, and checks that it holds no other training.

    Returns:
        The metrics of the logged steps, and how the training ended.

    Raises:
        UsageError: arguments or tasks do not fit, the training has diverged, the folder holds another training, or the
            folder is in use.
        Interrupted: after SIGINT or SIGTERM, at the end of the current step. The message says how to continue.
    """
    check_instance("learner", learner, MetaLearner, "construct one with MetaLearner.build")
    check_callables("callbacks", callbacks)
    check_integers(0, steps=steps)
    check_integers(1, accumulate=accumulate, batch_size=batch_size, log_every=log_every, validate_every=validate_every)
    optional = {"patience": patience, "validation_tasks": validation_tasks}
    check_integers(1, **{name: value for name, value in optional.items() if value is not None})
    check_not_negative(clip=clip, clip_value=clip_value, clip_each=clip_each)
    from pyro_metabayes.training.fabric import fabric_of_process  # takes a second, so not at the import of the package

    fabric = fabric_of_process(next(learner.parameters(), torch.empty(0)).device)
    stream, per_batch = _training_tasks(train, accumulate, batch_size, fabric.world_size)
    validation = task_stream(val, "val")
    settings = TrainSettings(
        steps=steps,
        tasks_per_step=per_batch * accumulate,
        kl_weight=kl_weight,
        clip=clip,
        clip_value=clip_value,
        clip_each=clip_each,
        on_nan=on_nan,
        log_every=log_every,
        validate_every=validate_every,
        validation_tasks=validation_tasks or validation.num_tasks or VALIDATION_TASKS,
    )
    optimisation = _optimisation(learner, optimiser, scheduler, steps)
    place = None if folder is None else user_path(folder)
    with ExitStack() as stack:
        if config is None and place is not None and fabric.is_global_zero:
            config = {FIT: _description(learner, settings, accumulate, stream, validation) | {"seed": seed}}
            stack.enter_context(made_folder(place))
            stack.enter_context(alone_in(place, "pass another folder"))
        training = MetaTraining(
            learner,
            stream,
            validation,
            settings,
            place,
            fabric,
            config=config or {},
            seed=seed,
            optimisation=optimisation,
            accumulate=accumulate,
            patience=patience,
            callbacks=callbacks,
        )
        training.run()
    state = training.state
    return History(training.log.lines, state.step, state.step < steps, state.seconds, state.skipped)


def _description(
    learner: MetaLearner, settings: TrainSettings, accumulate: int, stream: Tasks, validation: TaskStream
) -> dict[str, Any]:
    """Describe the settings, parts and tasks that must not change when a training is continued."""
    names = ("kl_weight", "clip", "clip_value", "clip_each", "on_nan", "validate_every", "validation_tasks")
    batch_size = settings.tasks_per_step // accumulate
    return {
        **{"batch_size": batch_size, "accumulate": accumulate, "frozen": learner.frozen},
        **{name: getattr(settings, name) for name in names},
        **described(Parts(learner.backbone, learner.model, learner.guide, learner.objective)),
        "train": description_of_tasks(stream, settings.tasks_per_step),
        "val": description_of_tasks(validation, min(settings.validation_tasks, DESCRIBED_TASKS)),
    }


def _training_tasks(train: Fixed | Batches, accumulate: int, batch_size: int, processes: int) -> tuple[Tasks, int]:
    """Return the stream of training tasks, and the number of items of the stream per batch (1 if items are batches)."""
    if isinstance(train, TaskStream | Episodes | list | tuple):
        refuse_unequal_shards(batch_size, processes)
        return task_stream(train, "train"), batch_size
    if processes > 1 or not (callable(train) or isinstance(train, Iterable)):
        raise UsageError(
            "expected train to be a TaskStream, Episodes, a list of Episodes or (with a single process) an iterable or "
            f"a function of batches, got an object of type {type(train).__name__}; for a Bank pass "
            'bank.tasks("train")'
        )
    return BatchStream(train, kept=accumulate), 1


def _optimisation(
    learner: MetaLearner, optimiser: Optimizer | Optimisation | None, scheduler: LRScheduler | None, steps: int
) -> Optimisation | None:
    """Combine the optimiser and scheduler of the caller; None stands for the default optimiser."""
    if optimiser is None or isinstance(optimiser, Optimisation):
        if scheduler is not None:
            raise UsageError("expected optimiser= together with scheduler=, got a scheduler only; pass its optimiser")
        return optimiser
    return OptimisationByUser(learner, optimiser, scheduler, steps)
