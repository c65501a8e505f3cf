"""A job on several processes equals the job on one: tasks, noise, results, and errors."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Generator, Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_metabayes import Episodes, UsageError, fit
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import BLOCK
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.distributed import check_devices, process_group
from pyro_metabayes.handlers.particles import Particles
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.seeding import task_draws, task_dropout, task_noise
from pyro_metabayes.training.data_parallel import TaskShard
from pyro_metabayes.training.fabric import fabric_alone, fabric_in_group
from pyro_metabayes.training.loop import MetaTraining
from pyro_metabayes.training.optimisation import TrainSettings
from tests.commands import call, checkpoint_of, figures_of, finish, lines_of, on_features, process, ran
from tests.pairs import Pair, random_tasks

TASKS = 6  # of a step
SETTINGS = {"steps": 4, "tasks_per_step": TASKS, "learning_rate": 1e-3, "optimizer": "sgd", "particles": 2}
SETTINGS |= {"log_every": 1, "validate_every": 2, "validation_tasks": 4}
SIB = {"num_steps": 2, "step_size": 0.05, "learn_step_size": True}
LEO = Pair("leo", "gaussian", model="leo", settings={"encoder_penalty": 0.1}, model_settings={"dropout": 0.3})
PAIRS = {
    "delta": Pair("sib", "flat", settings={**SIB, "posterior": "delta"}),
    "normal": Pair("sib", settings={**SIB, "inner_samples": 3}),  # as many as a process has tasks
    "savi": Pair("savi", "conditional"),
    "mc": Pair("mc", "conditional", objective="monte_carlo"),
    "leo": LEO,
    "unused": Pair("mean_field", objective="monte_carlo"),  # of the prior no term of the loss knows
}
BAD = {"stop": "diverged: first non-finite value at step 2: ", "skip": ""}  # by train.on_nan; one task is bad


# ---------------------------------------------------------------- the same gradients, the same runs


def poisoned(generator: Generator) -> Episodes:
    """A block of tasks in which one task of the second process in the second step is not finite."""
    tasks = drawn(generator)
    tasks.query_x[2 * TASKS - 1] = torch.nan
    return tasks


def drawn(generator: Generator) -> Episodes:
    return random_tasks(BLOCK, seed=int(torch.randint(2**31, (), generator=generator)))


def trained(fabric: Fabric, folder: Path, pair: Pair, draw: Any = drawn, **changed: Any) -> dict[str, Any]:
    """Train, and return terms and gradients of the first step, and the final state."""
    learner = pair.learner(seed=0, particles=2)
    torch.manual_seed(0)
    training = MetaTraining(
        learner=learner,
        stream=TaskStream(draw, seed=0, split="train"),
        validation=TaskStream(drawn, seed=0, split="val"),
        settings=TrainSettings(**SETTINGS | changed),
        folder=folder,
        fabric=fabric,
        config={},
    )
    terms = training._step()
    gradients = {name: its.grad for name, its in learner.named_parameters()}
    gradients = {name: its if its is None else its.clone() for name, its in gradients.items()}
    error = ""
    try:
        training.run()
    except UsageError as raised:
        error = str(raised)
    return {"terms": terms, "gradients": gradients, "skipped": training.state.skipped, "error": error}


def every_case(fabric: Fabric, folder: Path) -> dict[str, dict[str, Any]]:
    """Train all cases in float64. All processes of a job train them in the same order."""
    torch.set_default_dtype(torch.float64)
    cases = {name: trained(fabric, folder / name, pair) for name, pair in PAIRS.items()}
    return cases | {on_nan: trained(fabric, folder / on_nan, PAIRS["savi"], poisoned, on_nan=on_nan) for on_nan in BAD}


def fitted(folder: Path) -> dict[str, Any]:
    """A training by `fit` whose loss rises. It is continued after two steps, and stops when its patience ends."""
    called: list[int] = []
    for steps in (2, 20):
        learner = PAIRS["savi"].learner(seed=0, particles=2)
        optimiser = torch.optim.SGD(learner.parameters(), lr=0.1, maximize=True)
        rates = ReduceLROnPlateau(optimiser, factor=0.9, patience=0, threshold=100.0, threshold_mode="abs")
        torch.manual_seed(0)
        history = fit(
            learner,
            TaskStream(drawn, seed=0, split="train"),
            TaskStream(drawn, seed=0, split="val"),
            steps=steps,
            optimiser=optimiser,
            scheduler=rates,
            accumulate=3,
            callbacks=[lambda line: called.append(line["step"])],
            patience=3,
            folder=folder,
            batch_size=2,
            log_every=1,
            validate_every=1,
            validation_tasks=4,
        )
    nll = history.curve("val_nll")[1]
    return {"weights": learner.state_dict(), "rate": optimiser.param_groups[0]["lr"], "nll": nll, "called": called}


def second(folder: Path) -> None:
    """The program of the second process, with another state of the random numbers than that of the first."""
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
    pyro.set_rng_seed(1)
    with process_group():
        every_case(fabric_in_group(torch.device("cpu")), folder)
        torch.save(fitted(folder), folder.parent / "fitted.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path]]:
    """The results of all cases with one process, and with two (this is the first), and the folder of their files."""
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": "2"}
        job |= {"LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
        job |= {"TORCHELASTIC_RUN_ID": "1"}
        for name, value in job.items():
            patch.setenv(name, value)
        other = ForkProcess(target=second, args=(folder / "second",))
        with warnings.catch_warnings(action="ignore"):  # of threads, from Python 3.12 on
            other.start()
        try:
            one = every_case(fabric_alone(torch.device("cpu")), folder / "one")
            one["fit"] = fitted(folder / "one/fit")
            with process_group():
                two = every_case(fabric_in_group(torch.device("cpu")), folder / "two")
                two["fit"] = fitted(folder / "two/fit")
            other.join(30)
            assert other.exitcode == 0
        finally:
            other.kill()
            other.join()
            torch.set_default_dtype(torch.float32)
    yield one, two, folder


def test_a_run_on_one_device_minds_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where srun is installed Lightning asks for it, and in a job of several processes it would wait for the others."""
    srun = tmp_path / "srun"
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings(action="error"):
        assert fabric_alone(torch.device("cpu")).world_size == 1
        for name, value in {"NTASKS": "2", "PROCID": "0", "JOB_NAME": "job", "NODEID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        assert fabric_alone(torch.device("cpu")).world_size == 1


@pytest.mark.parametrize("case", PAIRS)
def test_two_processes_with_half_the_tasks_give_the_gradient_of_one_with_all(case: str, both: Any) -> None:
    one, two = (its[case] for its in both[:2])
    for name, expected in one["gradients"].items():
        if expected is None:
            assert two["gradients"][name] is None, name
        else:
            torch.testing.assert_close(two["gradients"][name], expected, rtol=1e-10, atol=1e-12)
    for name, value in one["terms"].items():
        torch.testing.assert_close(two["terms"][name], value.detach(), rtol=1e-12, atol=0.0)
    assert any(its is None for its in one["gradients"].values()) == (case == "unused")


@pytest.mark.parametrize("case", [*PAIRS, "skip"])
def test_a_run_of_two_processes_ends_as_that_of_one(case: str, both: Any) -> None:
    """Weights, logged figures, validation; the second process writes nothing."""
    one, two = (lines_of(both[2] / count / case) for count in ("one", "two"))
    assert [line["step"] for line in two] == [2, 3, 4] and "val_nll" in two[-1]
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert (value is None and other[name] is None) or other[name] == pytest.approx(value, rel=1e-8), name
    states = [checkpoint_of(both[2] / count / case) for count in ("one", "two")]
    for which in ("learner", "best"):
        for name, value in states[0][which]["weights"].items():
            torch.testing.assert_close(states[1][which]["weights"][name], value, rtol=1e-8, atol=1e-10)
    assert torch.equal(states[0]["training"]["random"], states[1]["training"]["random"])
    assert not (both[2] / "second").exists()


def test_fit_divides_the_tasks_among_the_processes_of_its_group(both: Any) -> None:
    """Rates and patience follow the validation of the first process, which alone calls back and writes."""
    one, two, other = both[0]["fit"], both[1]["fit"], torch.load(both[2] / "fitted.pt", weights_only=True)
    assert one["called"] == two["called"] == [1, 2, 3, 4] and other["called"] == []
    assert min(one["nll"]) == one["nll"][0] and other["nll"] == two["nll"] == pytest.approx(one["nll"], rel=1e-8)
    assert one["rate"] == two["rate"] == other["rate"] < 0.1
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-8, atol=1e-10)
        assert torch.equal(other["weights"][name], two["weights"][name]), name


def test_batches_of_the_user_are_not_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, tasks = PAIRS["savi"].learner(), random_tasks(4)
    group = SimpleNamespace(world_size=2)
    monkeypatch.setattr("pyro_metabayes.training.fabric.fabric_of_process", lambda device: group)
    with pytest.raises(
        UsageError,
        match=r"^expected train to be a TaskStream, .* \(with a single process\) an iterable or a function of .*",
    ):
        fit(learner, lambda number: tasks, tasks, steps=1)
    with pytest.raises(UsageError, match=r"multiple of the number of processes, got 5 tasks and 2 processes; .*"):
        fit(learner, tasks, tasks, steps=1, batch_size=5)


@pytest.mark.parametrize("on_nan", BAD)
def test_a_step_that_is_bad_for_one_process_is_bad_for_all(on_nan: str, both: Any) -> None:
    for outcome in both[:2]:
        assert BAD[on_nan] in outcome[on_nan]["error"]
        assert outcome[on_nan]["skipped"] == (on_nan == "skip")


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("of", [1, 2, 3, 6])
def test_shares_are_the_tasks_of_a_step_in_their_order(of: int) -> None:
    for step in range(3):
        ranges = [TaskShard(rank, of, TASKS).task_range(step) for rank in range(of)]
        assert [task for start, stop in ranges for task in range(start, stop)] == [*range(step * 6, step * 6 + 6)]


def test_uneven_shares_are_refused() -> None:
    with pytest.raises(UsageError, match="a multiple of the number of processes, got 6 tasks and 4 processes"):
        TaskShard(0, 4, TASKS)


HALF = TASKS // 2  # tasks per process; here also the number of samples, classes and features


def low_rank(num: int) -> LowRankPrecision:
    return LowRankPrecision(torch.zeros(num, HALF, HALF), torch.ones(()), torch.ones(num, HALF, HALF, 2), event_dim=2)


def normal(num: int) -> Normal:
    return Normal(torch.zeros(num, HALF, HALF), 1.0).to_event(2)


def at_a_site(q: TorchDistribution, num: int, particles: int) -> Tensor:
    def guide() -> Any:
        with pyro.plate("task", num, dim=-1):
            return pyro.sample("w", q)

    return Particles(particles)(guide)()


DRAWS: dict[str, tuple[int, Callable[[int], Tensor]]] = {  # the task axis, and a draw for so many tasks
    "noise": (0, lambda num: task_noise((num, HALF, HALF), torch.zeros(()), task_dim=0)),
    "samples": (1, lambda num: task_noise((HALF, num, HALF, HALF), torch.zeros(()), task_dim=1)),
    "axis from the end": (2, lambda num: task_noise((HALF, HALF, num, HALF), torch.zeros(()), task_dim=-2)),
    "double": (1, lambda num: task_noise((HALF, num), torch.zeros((), dtype=torch.float64), task_dim=1)),
    "dropout": (0, lambda num: task_dropout(torch.ones(num, HALF, HALF), 0.4)),
    "rsample": (0, lambda num: task_draws(normal(num).rsample)),
    "rsample of many": (2, lambda num: task_draws(normal(num).rsample, (HALF, 2))),
    "multivariate": (1, lambda num: task_draws(MultivariateNormal(torch.zeros(num, HALF), EYE).rsample, (HALF,))),
    "low rank": (1, lambda num: task_draws(low_rank(num).rsample, (HALF,))),
    "site": (0, lambda num: at_a_site(normal(num), num, particles=1)),
    "site with particles": (1, lambda num: at_a_site(normal(num), num, particles=HALF)),
    "expanded at a site": (1, lambda num: at_a_site(Normal(torch.zeros(HALF), 1.0).to_event(1), num, particles=HALF)),
    "of no task": (-1, lambda num: torch.randn(HALF, HALF)),
}
EYE = torch.eye(HALF)


@pytest.mark.parametrize("name", DRAWS)
def test_the_noise_of_a_process_is_what_one_process_draws_for_its_tasks(name: str) -> None:
    """No axis can be told from that of the tasks by its length: the draw names it."""
    axis, draw = DRAWS[name]
    torch.manual_seed(0)
    whole = draw(TASKS)
    after = torch.get_rng_state()
    for rank in range(2):
        torch.manual_seed(0)
        with TaskShard(rank, 2, TASKS).noise():
            part = draw(HALF)
        assert torch.equal(part, whole if axis < 0 else whole.narrow(axis, HALF * rank, HALF))
        assert torch.equal(torch.get_rng_state(), after), "random states of processes drift apart"


def test_a_latent_without_tasks_is_the_same_on_all_processes() -> None:
    draws = []
    for rank in range(2):
        torch.manual_seed(0)
        with TaskShard(rank, 2, TASKS).noise():
            draws.append(Particles(HALF)(lambda: pyro.sample("shared", Normal(torch.zeros(()), 1.0)))())
    assert draws[0].shape == (HALF, 1) and torch.equal(*draws)


# ---------------------------------------------------------------- what there is not


def test_more_devices_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"expected trainer.devices <= 1, the number of cuda devices, got 2"):
        check_devices(config_of(["data=gaussian_features", "trainer.devices=2", "device=cuda"]))


def test_another_number_than_torchrun_has_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"expected trainer.devices=4, the number of processes of torchrun, got 2"):
        check_devices(config_of(["data=gaussian_features", "trainer.devices=2"]))


@pytest.mark.usefixtures("empty_folder")
def test_a_sweep_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    outcome = call("run", "-m", "data=gaussian_features", "guide=proto", "seed=0", "trainer.devices=2")
    assert outcome.code == 1 and "expected one run under torchrun, got a sweep (-m)" in outcome.err


# ---------------------------------------------------------------- the command


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
def test_the_command_trains_on_two_processes_and_goes_on_with_another_number(features: Path) -> None:
    """Stopped on two, continued on one, and the other way round: the run that was never stopped."""
    settings = [*on_features(features), "guide=sib", "train.steps=60", "train.validate_every=20", "train.log_every=5"]
    ran("run", *settings, "hydra.run.dir=whole")
    for first, then in ((2, 1), (1, 2), (2, 2)):
        folder = Path(f"from_{first}_to_{then}")
        started = process("run", *settings, f"trainer.devices={first}", f"hydra.run.dir={folder}")
        while not (folder / "checkpoint.pt").exists():
            assert started.poll() is None, finish(started).err
            time.sleep(0.01)
        started.send_signal(signal.SIGINT)
        outcome = finish(started)
        assert outcome.code == 130 and "continue with: " in outcome.err and "Traceback" not in outcome.err
        ran("run", f"resume={folder}", f"trainer.devices={then}")
        assert figures_of(folder)["devices"] == then
        assert lines_of(folder)[-1]["loss"] == pytest.approx(lines_of(Path("whole"))[-1]["loss"], rel=1e-4)
        assert figures_of(folder)["nll"] == pytest.approx(figures_of(Path("whole"))["nll"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("killed", ["first", "other"])
def test_no_process_of_a_job_outlives_another(killed: str, features: Path) -> None:
    settings = [*on_features(features), "guide=proto", "train.steps=100000", "train.validate_every=10"]
    started = process("run", *settings, "trainer.devices=2", "hydra.run.dir=run")
    while not Path("run/checkpoint.pt").exists():
        assert started.poll() is None, finish(started).err
        time.sleep(0.01)
    found = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True)
    other = os.pidfd_open(int(found.stdout))
    os.kill(started.pid if killed == "first" else int(found.stdout), signal.SIGKILL)
    outcome = finish(started)
    if killed == "other":
        assert "a process of the job was lost" in outcome.error and "{1: -9}" in outcome.error
    assert select.select([other], [], [], 10)[0], "it is still there"
    ran("run", "resume=run", "train.steps=100")


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
def test_a_lost_process_of_another_machine_is_told_in_one_line(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them on two machines: neither process has started the other."""
    job = {"TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    job |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    settings = [*on_features(features), "guide=proto", "train.steps=100000", "train.validate_every=10"]
    started = []
    for rank in range(2):
        for name, value in (job | {"RANK": str(rank), "GROUP_RANK": str(rank)}).items():
            monkeypatch.setenv(name, value)
        started.append(process("run", *settings, "trainer.devices=2", "hydra.run.dir=run"))
    while not Path("run/checkpoint.pt").exists():
        assert started[0].poll() is None, finish(started[0]).err
        time.sleep(0.01)
    started[1].kill()
    assert finish(started[1]).code == -signal.SIGKILL
    assert "a process of the job was lost; " in (error := finish(started[0]).error) and "torchrun command" in error
