"""Do the learners and the commands compute on an accelerator what they compute on the CPU?

The accelerator is the device "twin" of tests/accelerator/twin.cpp. It uses the memory and the kernels of the CPU, so
its numbers equal those of the CPU bit for bit, but it refuses operations that mix devices. Loading it changes torch for
the whole process; the tests therefore call it in a process of its own.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.nn import functional

from pyro_metabayes import MetaLearner
from tests.accelerator.build import build
from tests.commands import SMALL, checkpoint_of, figures_of, finish, lines_of, on_features, process, same_weights
from tests.pairs import Pair, every_pair
from tests.test_run import GLYPHS

TWIN = "twin"
On = Callable[..., Any]  # calls a function of this file, with its arguments, in the process that has the device

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to build the device with")]


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("accelerator") / "site")


@pytest.fixture(scope="session")
def on_twin(backend: Path) -> Iterator[On]:
    """Call functions in a spawned process. It inherits sys.path, and so finds the device when it imports torch."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn"), one_thread) as pool:
        patch.syspath_prepend(backend)
        yield lambda function, *arguments: pool.submit(function, *arguments).result(120)


def one_thread() -> None:
    torch.set_num_threads(1)


def same(one: Any, other: Any) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


# ---------------------------------------------------------------- the device


def device_as_torch_sees_it() -> tuple[Any, ...]:
    torch.accelerator.synchronize()
    accelerator, module = torch.accelerator, torch.get_device_module(TWIN)
    of_torch = str(accelerator.current_accelerator()), accelerator.device_count(), accelerator.current_device_index()
    return *of_torch, module.is_available(), str(torch.ones(2, device=TWIN).device), torch.ones(1).to(TWIN).device.type


def test_torch_finds_it_by_itself(on_twin: On) -> None:
    assert on_twin(device_as_torch_sees_it) == (TWIN, 1, 0, True, "twin:0", TWIN)


MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {  # of a tensor of the device and one of the CPU, [3, 3]
    "sum": lambda there, here: there + here,
    "sum in place": lambda there, here: there.add_(here),
    "sum in place on the CPU": lambda there, here: here.sum().add_(there.sum()),
    "out": lambda there, here: torch.add(there, 1, out=here),
    "matmul": lambda there, here: there @ here,
    "cat": lambda there, here: torch.cat([there, here]),
    "where": lambda there, here: torch.where(there > 0, there, here),
    "gather": lambda there, here: there.gather(0, here.long()),
    "mask": lambda there, here: there.masked_fill(here > 0, 0.0),
    "conv1d": lambda there, here: functional.conv1d(there.unsqueeze(0), here.unsqueeze(0)),
    "solve": lambda there, here: torch.cholesky_solve(there, here),
    "normal": lambda there, here: torch.normal(there, here),
    "cross_entropy": lambda there, here: functional.cross_entropy(there, here.softmax(-1)),
    "foreach": lambda there, here: torch._foreach_add([there], [here]),
}


def mixing(name: str) -> str:
    try:
        MIXED[name](torch.eye(3, device=TWIN), torch.eye(3))
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_refused(name: str, on_twin: On) -> None:
    assert "to be on the same device, but found" in on_twin(mixing, name)


def allowed_mixes() -> Tensor:
    eye = torch.eye(3, device=TWIN)
    return (eye * torch.tensor(2.0) + eye[torch.tensor([2, 1, 0])]).cpu()


def test_numbers_and_indices_of_the_cpu_are_not(on_twin: On) -> None:
    """As on CUDA."""
    assert torch.equal(on_twin(allowed_mixes), 2 * torch.eye(3) + torch.eye(3).flip(0))


# ---------------------------------------------------------------- what it computes


def drawn(device: str) -> list[Tensor]:
    """Random draws from the default generator of the device, and from a given generator."""
    torch.manual_seed(3)
    ones, own = torch.ones(40, device=device), Generator(device=device).manual_seed(5)
    draws = [torch.randn(5, device=device), torch.rand(40, device=device), torch.randperm(9, device=device)]
    draws += [torch.randint(0, 9, (5,), device=device), torch.bernoulli(0.5 * ones), ones.multinomial(3)]
    draws += [torch._standard_gamma(ones), torch._sample_dirichlet(ones), torch.normal(ones, 1.0)]
    draws += [functional.dropout(ones, 0.3), ones.clone().uniform_(-1, 1), ones.clone().exponential_()]
    draws += [torch.randn(7, device=device, generator=own), ones.clone().normal_(generator=own)]
    return [draw.cpu() for draw in draws]


def algebra(device: str) -> list[Tensor]:
    """Results of linear algebra, indices, masks, sorting, and derivatives of functions."""
    a = torch.randn(4, 4, generator=Generator().manual_seed(0)).to(device)
    spd, index, mask = a @ a.mT + torch.eye(4, device=device), torch.tensor([[1, 2]], device=device), a > 0
    found = [torch.linalg.cholesky(spd), torch.linalg.solve(spd, a), *torch.linalg.eigh(spd), torch.logdet(spd)]
    found += [a[mask], a[:, [1, 0]], a.gather(1, index), a.scatter(1, index, 0.0), a.masked_fill(mask, 0.0)]
    found += [*a.sort(), *a.topk(2), a.argsort(), a.unique(), mask.nonzero(), a.cumsum(0), a.logsumexp(0)]
    found += [a.as_strided((2, 2), (1, 4)), torch.einsum("ij,kj->ik", a, a), torch.fft.rfft(a).conj().abs()]
    scalar = lambda x: (x.sin() * x).sum()  # noqa: E731
    found += [vmap(grad(scalar))(a), hessian(scalar)(a[0]), jvp(scalar, (a,), (a,))[1]]
    found += vjp(torch.linalg.cholesky, spd)[1](a)
    return [value.cpu() for value in found]


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutional = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*convolutional, nn.Flatten(), nn.Linear(36, 3))


def trained(device: str, settings: dict[str, Any]) -> list[Tensor]:
    """A convolutional network after five steps of Adam with clipped gradients."""
    net, noise = network().to(device), Generator().manual_seed(1)
    images, labels = torch.randn(8, 1, 8, 8, generator=noise), torch.randint(0, 3, (8,), generator=noise)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, **settings)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(net(images.to(device)), labels.to(device)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    doubled = {name: 2 * value for name, value in net.eval().named_parameters()}
    return [
        value.detach().cpu() for value in (*net.state_dict().values(), functional_call(net, doubled, images.to(device)))
    ]


def inferred(device: str) -> list[Tensor]:
    """The parameters of a normal model after ten steps of Pyro's SVI."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = torch.randn(20, generator=Generator().manual_seed(2)).to(device)

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", Normal(torch.zeros((), device=device), 1.0))
        with pyro.plate("points", len(data)):
            pyro.sample("x", Normal(loc, 1.0), obs=data)

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=2))
    losses = [svi.step(data) for _ in range(10)]
    return [torch.tensor(losses), *(value.detach().cpu() for value in guide.parameters())]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (drawn, ()),
        (algebra, ()),
        (inferred, ()),
        *((trained, (settings,)) for settings in ({}, {"foreach": True}, {"fused": True}, {"amsgrad": True})),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(key for part in value for key in part),
)
def test_numbers_are_those_of_the_cpu(function: Any, arguments: Any, on_twin: On) -> None:
    assert same(on_twin(function, TWIN, *arguments), function("cpu", *arguments))


def states_of_generators() -> bool:
    """Whether states of the device's generators can be restored, and the state of the CPU does not change."""
    module, on_cpu = torch.get_device_module(TWIN), torch.get_rng_state()
    state, first = module.get_rng_state(), torch.rand(4, device=TWIN)
    module.set_rng_state(state)
    with torch.random.fork_rng(device_type=TWIN):
        torch.rand(9, device=TWIN)
    again = torch.rand(4, device=TWIN)
    own = Generator(device=TWIN).manual_seed(1)
    state, third = own.get_state(), torch.rand(4, device=TWIN, generator=own)
    fourth = torch.rand(4, device=TWIN, generator=own.set_state(state))
    return torch.equal(first, again) and torch.equal(third, fourth) and torch.equal(on_cpu, torch.get_rng_state())


def test_states_of_generators_are_restored(on_twin: On) -> None:
    assert on_twin(states_of_generators)


def saved(device: str) -> bytes:
    matrix, buffer = torch.arange(12.0).view(3, 4).to(device), io.BytesIO()
    torch.save({"weights": network().to(device).state_dict(), "view": matrix[1:, ::2]}, buffer)
    return buffer.getvalue()


def loaded(content: bytes, location: str | None) -> tuple[set[str], list[Tensor]]:
    found = torch.load(io.BytesIO(content), map_location=location, weights_only=True)
    tensors = [*found["weights"].values(), found["view"]]
    return {tensor.device.type for tensor in tensors}, [tensor.cpu() for tensor in tensors]


@pytest.mark.parametrize(("source", "location"), [(TWIN, None), (TWIN, "cpu"), ("cpu", TWIN)])
def test_what_is_saved_is_loaded_on_either_device(source: str, location: str | None, on_twin: On) -> None:
    devices, tensors = on_twin(loaded, on_twin(saved, source), location)
    assert devices == {location or source} and same(tensors, loaded(saved("cpu"), None)[1])


# ---------------------------------------------------------------- the learners


def two_steps(pair: Pair, device: str) -> list[Tensor]:
    """The losses of two training steps, and the parameters after them."""
    learner, tasks = pair.learner().to(device), pair.tasks().to(device)
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    torch.manual_seed(1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(learner(tasks)["loss"])
        losses[-1].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    return [value.detach().cpu() for value in (*losses, *learner.parameters())]


@pytest.mark.parametrize("pair", every_pair(), ids=str)
def test_every_learner_takes_a_step(pair: Pair, on_twin: On) -> None:
    """Losses, gradients and noise equal those of the CPU, and no tensor has stayed on the CPU."""
    assert same(on_twin(two_steps, pair, TWIN), two_steps(pair, "cpu"))


# ---------------------------------------------------------------- the command


@pytest.fixture
def shell(backend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The current folder and the environment of commands that find the device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(backend))
    return monkeypatch


def finished(*settings: str) -> None:
    outcome = finish(process("run", *settings, "train.log_every=1", "train.validate_every=1"), 240)
    assert outcome.code == 0, outcome.err


def assert_same_runs(folder: Path, other: Path) -> None:
    """Check that metrics, logged lines and weights are equal bit for bit. The settings differ in the device."""
    figures, others = (
        {k: v for k, v in figures_of(run).items() if k not in ("config", "device")} for run in (folder, other)
    )
    assert figures == others
    assert lines_of(folder) == lines_of(other)
    for which in ("learner", "best"):
        assert same_weights(*(checkpoint_of(run)[which]["weights"] for run in (folder, other)))


@pytest.mark.parametrize("guide", ["sib", "savi", "mc", "maml", "proto"])
def test_a_whole_run_is_that_of_the_cpu(guide: str, features: Path, shell: pytest.MonkeyPatch) -> None:
    """Data, training, evaluation, checkpoint and resume."""
    shell.setenv("TWIN_ONE_STREAM", "1")
    for device in ("cpu", TWIN):
        finished(*on_features(features), f"guide={guide}", f"device={device}", f"hydra.run.dir={device}")
        finished(f"resume={device}", "train.steps=4")
        assert figures_of(Path(device))["device"].startswith(device)
    assert_same_runs(Path(TWIN), Path("cpu"))


def test_a_pretraining_is_that_of_the_cpu(shell: pytest.MonkeyPatch) -> None:
    shell.setenv("TWIN_ONE_STREAM", "1")
    for device in ("cpu", TWIN):
        shell.setenv("METABAYES_CACHE", f"cache_{device}")
        finished(*GLYPHS, *SMALL, "guide=proto", f"device={device}", f"hydra.run.dir={device}")
    assert_same_runs(Path(TWIN), Path("cpu"))


def test_a_resumed_run_goes_on_with_the_noise_of_the_device(features: Path, shell: pytest.MonkeyPatch) -> None:
    """The state of the device's generator is part of the checkpoint."""
    settings = *on_features(features), "guide=savi", "train.schedule=constant", f"device={TWIN}"
    finished(*settings, "train.steps=4", "hydra.run.dir=whole")
    finished(*settings, "train.steps=2", "hydra.run.dir=resumed")
    finished("resume=resumed", "train.steps=4")
    assert_same_runs(Path("resumed"), Path("whole"))


@pytest.mark.parametrize(("first", "then"), [(TWIN, "cpu"), ("cpu", TWIN)])
def test_a_checkpoint_goes_on_on_another_device(
    first: str, then: str, features: Path, shell: pytest.MonkeyPatch
) -> None:
    """A run resumes elsewhere; its learner loads where its device is not known."""
    finished(*on_features(features), "guide=savi", f"device={first}", "hydra.run.dir=run")
    assert all(torch.isfinite(value).all() for value in MetaLearner.load("run").state_dict().values())
    finished("resume=run", "train.steps=4", f"device={then}")
    assert figures_of(Path("run"))["device"].startswith(then) and lines_of(Path("run"))[-1]["step"] == 4
