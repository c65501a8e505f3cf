"""Streams of tasks that the user has constructed: Episodes, or batches of Episodes from a function or an iterable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat

from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.episodes import Episodes, concatenate
from pyro_metabayes.errors import UsageError
from pyro_metabayes.seeding import drawing, noise_of

Fixed = TaskStream | Episodes | Sequence[Episodes]
Batches = Callable[[int], Episodes] | Iterable[Episodes]


def task_stream(tasks: Fixed, name: str) -> TaskStream:
    """Return a stream of the given tasks.

    Args:
        tasks: Episodes or a list of Episodes, whose tasks are repeated; a stream is returned unchanged.
        name: name of the argument, for messages.

    Raises:
        UsageError: `tasks` is another object, there are no tasks or no queries, or tasks differ in the number of
            classes.
    """
    if isinstance(tasks, TaskStream):
        return tasks
    parts = [tasks] if isinstance(tasks, Episodes) else list(tasks) if isinstance(tasks, list | tuple) else []
    if not parts or not all(isinstance(part, Episodes) and part.num_tasks for part in parts):
        raise UsageError(
            f"expected {name} to be a TaskStream, Episodes or a list of Episodes, with at least one task, got "
            f'{_kind(tasks)}; to use a Bank, pass bank.tasks("test")'
        )
    for part in parts:
        _refuse_without_queries(part, name)
    if len(ways := {part.num_classes for part in parts}) > 1:
        raise UsageError(
            f"expected the same number of classes in all tasks of {name}, got {sorted(ways)}; pass one list for each"
        )
    joined = concatenate(parts)
    return TaskStream(lambda generator: joined, 0, name, joined.num_tasks, block=joined.num_tasks)


class BatchStream:
    """Stream of batches of tasks that the user constructs. An index is the number of a batch, not of a task.

    While a batch is constructed, torch's seed is the number of the batch. A resumed training thus gets the same
    batches. Other random numbers of the training are not changed.

    Args:
        batches: a function of the number of the batch, 0, 1, ..., or an iterable. An iterable that ends is read again
            from its start.
        kept: how many of the last batches of an iterable stay in memory and can be requested again.
    """

    def __init__(self, batches: Batches, kept: int) -> None:
        self._batch_of = batches if callable(batches) else _InOrder(batches, kept)

    def batch(self, start: int, stop: int) -> Episodes:
        """Return the batches start, ..., stop - 1, concatenated."""
        return concatenate([self._checked(number) for number in range(start, stop)])

    def _checked(self, number: int) -> Episodes:
        with noise_of(number), drawing():
            batch = self._batch_of(number)
        if not isinstance(batch, Episodes):
            raise UsageError(
                f"expected batches of type Episodes from train, got {_kind(batch)} as batch {number}; return Episodes"
            )
        _refuse_without_queries(batch, "train")
        return batch


class _InOrder:
    """Access to the items of an iterable by number, in increasing order; the last `kept` items can be read again."""

    def __init__(self, iterable: Iterable[Episodes], kept: int) -> None:
        self._items = _endless(iterable)
        self._kept: deque[Episodes] = deque(maxlen=kept)
        self._read = 0

    def __call__(self, number: int) -> Episodes:
        while self._read <= number:
            with noise_of(self._read), drawing():
                self._kept.append(next(self._items))
            self._read += 1
        return self._kept[number - self._read]


def _endless(iterable: Iterable[Episodes]) -> Iterator[Episodes]:
    """Yield the items of an iterable again and again.

    An iterator can be read only once. Its end raises a UsageError.
    """
    yield from iterable if isinstance(iterable, Iterator) else chain.from_iterable(repeat(iterable))
    raise UsageError(
        "expected a batch of tasks for every step, got an iterator that has ended; pass a list or a function"
    )


def _refuse_without_queries(episodes: Episodes, name: str) -> None:
    if not episodes.query_x.shape[1]:
        raise UsageError(f"expected tasks with query points from {name}, got Episodes with none; add queries")


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"
