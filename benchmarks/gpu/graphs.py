"""Steps per second of sib as one CUDA graph: forward, backward and Adam, launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.compilation import TASKS, eager, sib
from benchmarks.gpu.result import NOT_RUN, Result, Run, compared
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
    yield run.attempt(case, "training step", partial(_compared, case, number, run))


def _compared(case: str, number: int, run: Run) -> list[Result]:
    episodes = tasks(number, device=run.device).episodes
    ways: dict[str, Callable[[], Way]] = {
        "eager": lambda: eager(sib(run), episodes),
        "captured": lambda: CapturedStep(sib(run), episodes),
    }
    return compared(run, case, ways, 1, "steps/s")


class CapturedStep:
    """A training step that is recorded once and replayed from then on: the graph reads and writes the same memory.

    Hence it is kept with all that it works on. The noise goes on from replay to replay: capture registers torch's
    generator with the graph.
    """

    def __init__(self, ours: MetaLearner, episodes: Episodes) -> None:
        self.learner, self.episodes = ours, episodes
        trained = [value for value in ours.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-6, capturable=True)  # its count of steps is on the device
        self._warm_up()
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # so that gradients are made anew, in the memory of the graph
        with torch.cuda.graph(self.graph):
            self._step()

    def __call__(self) -> None:
        self.graph.replay()

    def _warm_up(self) -> None:
        """On a stream of its own, as capture needs it: workspaces and moments are allocated before."""
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
