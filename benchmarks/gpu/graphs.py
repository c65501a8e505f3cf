"""Steps per second of sib as one CUDA graph: forward, backward and Adam, launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.compilation import TASKS, sib_learner, training_step
from benchmarks.gpu.result import NOT_RUN, Result, Run, compare_ways
from benchmarks.measure import Way
from benchmarks.setting import Size, tasks
from pyro_metabayes import Episodes, MetaLearner

WARM_UP = 3


def rows(run: Run) -> Iterator[list[Result]]:
    (number,) = Size(run.toy).tasks(TASKS)
    case = f"sib, T={number}, CUDA graph"
    if run.device.type != "cuda":
        yield [Result(case, "training step", NOT_RUN, note="needs CUDA")]
        return
    yield run.attempt(case, "training step", partial(_measure, case, number, run))


def _measure(case: str, number: int, run: Run) -> list[Result]:
    episodes = tasks(number, device=run.device).episodes
    ways: dict[str, Callable[[], Way]] = {
        "eager": lambda: training_step(sib_learner(run), episodes),
        "captured": lambda: CapturedStep(sib_learner(run), episodes),
    }
    return compare_ways(run, case, ways, 1, "steps/s")


class CapturedStep:
    """A training step that is captured once and then replayed: the graph reads and writes the same memory.

    The object therefore keeps every tensor of the graph. Replays have different noise: capture registers the generator
    of torch with the graph.
    """

    def __init__(self, learner: MetaLearner, episodes: Episodes) -> None:
        self.learner, self.episodes = learner, episodes
        parameters = [value for value in learner.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-6, capturable=True)  # its count of steps is on the device
        self._warm_up()
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # gradients are then allocated in the memory of the graph
        with torch.cuda.graph(self.graph):
            self._step()

    def __call__(self) -> None:
        self.graph.replay()

    def _warm_up(self) -> None:
        """On a side stream, as capture requires; allocates workspaces and moments before the capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.optimizer.zero_grad()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)

    def _step(self) -> None:
        self.learner(self.episodes)["loss"].backward()
        self.optimizer.step()
