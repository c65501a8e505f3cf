"""Training from Python, without settings files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_metabayes.data.sources.given import Batches, BatchStream, Fixed, task_stream
from pyro_metabayes.data.stream import Tasks, TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import Interrupted, UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.specification.from_parts import described
from pyro_metabayes.specification.parts import Parts
from pyro_metabayes.storage.lock import alone_in, made_folder
from pyro_metabayes.storage.paths import user_path
from pyro_metabayes.training.log import History
from pyro_metabayes.training.loop import Callback, MetaTraining
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.training.single_process import fabric_alone
from pyro_metabayes.training.user_optimizer import OptimisationByUser
from pyro_metabayes.validation.arguments import check_callables, check_instance, check_integers, check_not_negative
from pyro_metabayes.validation.same_training import FIT, description_of_tasks, steps_taken

VALIDATION_TASKS = 100  # default for an endless stream
DESCRIBED_TASKS = 32  # validation tasks that are compared when a training is continued


def fit(
    learner: MetaLearner,
    train: Fixed | Batches,
    val: Fixed,
    *,
    steps: int,
    optimiser: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    accumulate: int = 1,
    callbacks: Sequence[Callback] = (),
    patience: int | None = None,
    folder: Path | str | None = None,
    batch_size: int = 16,
    kl_weight: float = 1.0,
    clip: float = 0.0,
    log_every: int = 50,
    validate_every: int = 100,
    validation_tasks: int | None = None,
) -> History:
    """Train a learner in place. At the end it has the weights of the best validation (smallest NLL of `posterior`).

        learner = MetaLearner.build(network, "sib", prior="gaussian", objective="elbo", input_shape=[3, 32, 32])
        optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-3)
        history = fit(learner, bank.tasks("train"), bank.tasks("val"), steps=1000, optimiser=optimiser, folder="runs/a")

    Training uses torch's random numbers (`torch.manual_seed`) and the device of the learner. With a folder, the same
    call continues an interrupted training, with the same result bit for bit. Construct learner, optimiser and scheduler
    as before; their states are read from the folder. Only `steps`, `patience`, `log_every` and `callbacks` may change.
    The folder has the files of `python -m experiments.run`; `MetaLearner.load(folder)` reads the best learner.

    Args:
        learner: the learner to train.
        train: training tasks: a stream, each batch of which is the next `batch_size` tasks; Episodes or a list of them,
            whose tasks are repeated; or batches, from an iterable or a function of the number 0, 1, ... of the batch.
            While a batch is constructed, torch's seed is its number.
        val: validation tasks: a stream, Episodes, or a list of them.
        steps: number of steps of the optimiser.
        optimiser: any torch optimiser over parameters of the learner, constructed after the learner is on its device;
            None: Adam, with a learning rate that falls from 1e-3 to 0 along a cosine.
        scheduler: any torch scheduler of this optimiser. Its `step` is called after every step, but for
            ReduceLROnPlateau after every validation, with the NLL. None: constant rates.
        accumulate: number of batches per step, whose gradients are averaged. The result equals that of one batch with
            all these tasks up to rounding, noise included.
        callbacks: functions that are called with the line of each logged step, a dictionary with the entries of
            `History.lines`. Random numbers that they draw do not change the training.
        patience: number of validations in a row without a smaller NLL after which training ends; None: never.
        folder: folder of checkpoint and log; None: neither is written.
        batch_size: number of tasks per batch; unused if `train` consists of batches.
        kl_weight: weight of the KL term of the loss.
        clip: largest norm of the gradient; 0: no clipping.
        log_every: number of steps between two logged lines.
        validate_every: number of steps between two validations and saves; the last step is always validated.
        validation_tasks: number of validation tasks; None: all of them, or 100 of an endless stream.

    Returns:
        The logged lines and how the training ended.

    Raises:
        UsageError: arguments do not fit together, tasks are not suitable for the learner, the training has diverged, or
            the folder holds another training or is in use.
        Interrupted: after SIGINT; the message says how to continue.
    """
    check_instance("learner", learner, MetaLearner, "construct one with MetaLearner.build")
    check_callables("callbacks", callbacks)
    counts = {"steps": steps, "accumulate": accumulate, "batch_size": batch_size, "log_every": log_every}
    counts |= {"validate_every": validate_every} | ({} if patience is None else {"patience": patience})
    check_integers(1, **counts)
    check_not_negative(clip=clip)
    stream, per_batch = _training_tasks(train, accumulate, batch_size)
    validation = task_stream(val, "val")
    settings = TrainSettings(
        steps=steps,
        tasks_per_step=per_batch * accumulate,
        kl_weight=kl_weight,
        clip=clip,
        log_every=log_every,
        validate_every=validate_every,
        validation_tasks=_validation_tasks(validation, validation_tasks),
    )
    optimisation = _optimisation(learner, optimiser, scheduler, steps)
    with _own_folder(folder) as place:
        description = {} if place is None else _description(learner, settings, accumulate, stream, validation)
        taken = 0 if place is None else steps_taken(place, description, steps)
        training = MetaTraining(
            learner,
            stream,
            validation,
            settings,
            place,
            fabric_alone(next(learner.parameters()).device),
            config={FIT: description},
            optimisation=optimisation,
            accumulate=accumulate,
            patience=patience,
            callbacks=callbacks,
        )
        _run(training)
        if taken and training.state.step == taken:
            print(f"note: the training in {place} had already finished after {taken} steps", file=sys.stderr)
    return History(training.log.lines, training.state.step, stopped_early=training.state.step < steps)


@contextmanager
def _own_folder(folder: Path | str | None) -> Iterator[Path | None]:
    """The folder, locked for other trainings; an empty folder is removed at the end."""
    if folder is None:
        yield None
        return
    with made_folder(path := user_path(folder)), alone_in(path, "pass another folder"):
        yield path


def _description(
    learner: MetaLearner, settings: TrainSettings, accumulate: int, stream: Tasks, validation: TaskStream
) -> dict[str, Any]:
    """Settings, parts and tasks that must be equal when a training is continued (`steps_taken`)."""
    names = ("kl_weight", "clip", "validate_every", "validation_tasks")
    batch_size = settings.tasks_per_step // accumulate
    parts = Parts(learner.backbone, learner.model, learner.guide, learner.objective)
    return {
        **{"batch_size": batch_size, "accumulate": accumulate, "frozen": learner.frozen},
        **{name: getattr(settings, name) for name in names},
        **described(parts),
        "train": description_of_tasks(stream, settings.tasks_per_step),
        "val": description_of_tasks(validation, min(settings.validation_tasks, DESCRIBED_TASKS)),
    }


def _run(training: MetaTraining) -> None:
    try:
        training.run()
    except Interrupted:
        step, folder = training.state.step, training.folder
        go_on = "nothing is kept without folder=" if folder is None else f"the same call continues from {folder}"
        raise Interrupted(f"interrupted after step {step} of {training.settings.steps}; {go_on}") from None


def _training_tasks(train: Fixed | Batches, accumulate: int, batch_size: int) -> tuple[Tasks, int]:
    """The stream of training tasks, and the number of task indices per batch."""
    if isinstance(train, TaskStream | Episodes | list | tuple):
        return task_stream(train, "train"), batch_size
    if not callable(train) and not hasattr(train, "__iter__"):
        raise UsageError(
            "expected train to be a TaskStream, Episodes, a list of them, an iterable of batches or a function of a "
            f'number, got an object of type {type(train).__name__}; bank.tasks("train") makes a stream of a Bank'
        )
    return BatchStream(train, kept=accumulate), 1


def _validation_tasks(stream: TaskStream, number: int | None) -> int:
    if number is None:
        return stream.num_tasks or VALIDATION_TASKS
    check_integers(1, validation_tasks=number)
    return number


def _optimisation(
    learner: MetaLearner, optimiser: Optimizer | None, scheduler: LRScheduler | None, steps: int
) -> OptimisationByUser | None:
    """The optimiser and scheduler of the user; None: the default of the settings."""
    if optimiser is None and scheduler is None:
        return None
    if optimiser is None:
        raise UsageError("expected the optimiser of the scheduler, got none; also pass optimiser=")
    return OptimisationByUser(learner, optimiser, scheduler, steps)
