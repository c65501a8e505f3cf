"""Steps per second of sib if one CUDA graph holds forward pass, backward pass and Adam."""

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
    """A training step that is captured once and then replayed.

    Every replay reads and writes the same memory, so this object keeps all tensors of the graph. Replays draw different
    noise, since capture registers the random generator of torch with the graph.
    """

    def __init__(self, learner: MetaLearner, episodes: Episodes) -> None:
        self.learner, self.episodes = learner, episodes
        parameters = [value for value in learner.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-6, capturable=True)  # counts steps on the device
        self._warm_up()
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # so that gradients are allocated in the memory of the graph
        with torch.cuda.graph(self.graph):
            self._step()

    def __call__(self) -> None:
        self.graph.replay()

    def _warm_up(self) -> None:
        """Take steps on a side stream, as capture requires. They allocate workspaces and the moments of Adam."""
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
