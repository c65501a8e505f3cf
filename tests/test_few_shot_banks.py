"""Does the comparison of few-shot classifiers measure what it prints?"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.few_shot import docstrings, page
from benchmarks.few_shot.__main__ import grid_cells, main
from benchmarks.few_shot.banks import TEST, TUNING, alphabet_of, source_of
from benchmarks.few_shot.compare import Comparison
from benchmarks.few_shot.handcrafted import gradient_histograms
from benchmarks.few_shot.peers import PEERS, inverse_of, settings_of, specification_of
from benchmarks.few_shot.rows import Checkpoint, Classifier, Function, Row
from benchmarks.few_shot.tables import less_accurate, less_likely, summary_of
from benchmarks.few_shot.tasks import Cell, batches, stream_of
from benchmarks.few_shot.tuning import Tuning, best_inverse, tempered
from benchmarks.setting import learner
from pyro_metabayes import MetaLearner
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.transductive.methods import predict_of

TOY = Tuning(("simulated",), tasks=2)
FIVE = Cell(5, 1)


def uniform(observed: Observed) -> Tensor:
    shape = (*observed.query_x.shape[:2], observed.num_classes)
    return torch.full(shape, 1 / observed.num_classes).log()


def _observed(cell: Cell = FIVE) -> Observed:
    return stream_of("simulated", cell, 0).batch(0, 3).observed()


def test_the_command_compares_on_the_same_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function = f"{__name__}:uniform"
    main(["--toy", "--methods", "class_means_one", "--function", function, "--out", str(tmp_path / "out.json")])
    assert "5-way 5-shot, dirichlet2" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["method"] for result in results] == 4 * ["class_means", "class_means_one", function]
    for means, one, flat in zip(*(iter(results),) * 3, strict=True):
        assert means["nll_difference"] == {"mean": 0, "ci95": 0} == one["accuracy_difference"]  # other temperatures
        assert flat["nll"]["mean"] == pytest.approx(np.log(5))
        difference = flat["accuracy"]["mean"] - means["accuracy"]["mean"]
        assert flat["accuracy_difference"]["mean"] == pytest.approx(difference)
    page.main([str(tmp_path / "out.json"), str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [result["method"] for result in results]
    assert rows[2]["task"] == "simulated, 5-way 1-shot, balanced" and rows[2]["NLL"].startswith("1.609 +- ")


def test_the_grid_counts_the_cells_in_which_a_method_is_worse(capsys: pytest.CaptureFixture[str]) -> None:
    cells = grid_cells()
    assert len(set(cells)) == len(cells) == 55
    assert min(cell.way for cell in cells if cell.marginal == "absent") == 5
    flat = Function("flat", uniform)
    results = Comparison([PEERS["class_means"], flat], 16, 0, TOY).results("simulated", Cell(5, 5, "absent"))
    assert [less_accurate(result) for result in results] == [False, True] == [less_likely(result) for result in results]
    assert summary_of(results).splitlines()[-1].split()[:5] == ["simulated", "flat", "1", "1", "1"]


def test_an_interval_that_reaches_the_limit_is_not_worse() -> None:
    def result(mean: float) -> dict[str, dict[str, float]]:
        return {name: {"mean": mean, "ci95": 0.01} for name in ("accuracy_difference", "nll_difference")}

    assert less_accurate(result(-0.014)) and not less_accurate(result(-0.012))
    assert less_likely(result(0.021)) and not less_likely(result(0.019))


def test_marginals_have_the_queries_that_their_names_say() -> None:
    def counts(marginal: str) -> Tensor:
        labels = stream_of("simulated", Cell(5, 1, marginal), 0).batch(0, 64).query_y
        return torch.nn.functional.one_hot(labels, 5).sum(1)

    assert (counts("balanced") == 15).all()
    assert (counts("absent").sort(1).values == torch.tensor([0, 15, 15, 15, 15])).all()
    assert set(counts("absent").argmin(1).tolist()) == set(range(5))
    spread = {name: float(counts(name).double().std(1).mean()) for name in ("mixed", "dirichlet2", "dirichlet1")}
    assert 0 < spread["mixed"] < spread["dirichlet2"] < spread["dirichlet1"]
    with pytest.raises(UsageError, match="got 'uneven'"):
        counts("uneven")


def test_a_fitted_temperature_is_that_of_the_labels() -> None:
    logits = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial((3 * logits).softmax(-1), 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
    assert best_inverse([(logits.log_softmax(-1), labels)]) == pytest.approx(3, rel=0.05)
    assert torch.equal(tempered(logits, 3.0), (3 * logits).log_softmax(-1))


def test_settings_of_a_peer_are_the_best_of_its_candidates() -> None:
    peer, shapes = PEERS["soft_kmeans"], ((5, 1),)

    def loss(settings: tuple[str, ...]) -> float:
        row = peer.untempered(32, FIVE, settings)
        episodes = stream_of("simulated", Cell(5, 1, "mixed"), 0).batch(0, 2)
        log_probs = tempered(row(episodes.observed()), inverse_of(peer, settings, shapes, TOY))
        return float(torch.nn.functional.nll_loss(log_probs.flatten(0, 1), episodes.query_y.flatten()))

    losses = {settings: loss(settings) for settings in peer.candidates}
    assert losses[settings_of(peer, shapes, TOY)] == min(losses.values()) < max(losses.values())


def test_a_variance_per_feature_keeps_the_predictions_of_lda_when_zeros_are_appended() -> None:
    peer, observed = PEERS["lda"], _observed(Cell(5, 5))
    padded = replace(observed, **{name: pad(getattr(observed, name), (0, 32)) for name in ("support_x", "query_x")})
    narrow, wide = (peer.untempered(size, Cell(5, 5), peer.candidates[0]) for size in (32, 64))
    torch.testing.assert_close(wide(padded), narrow(observed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"tim", "alpha_tim", "ilpc"}))  # these take minutes
@pytest.mark.parametrize("shot", [1, 5])
def test_every_peer_gives_normalised_log_probabilities(name: str, shot: int) -> None:
    peer = PEERS[name]
    observed = _observed(Cell(3, shot))
    log_probs = peer.untempered(32, Cell(3, shot), peer.candidates[0])(observed)
    torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(3, 45), rtol=0, atol=1e-5)


def test_a_checkpoint_is_rebuilt_for_each_dimension_and_way(tmp_path: Path) -> None:
    def soft_kmeans(way: int, features: int, *settings: str) -> MetaLearner:
        shared = {"input_shape": [features], "num_classes": way, "num_targets": 0, "particles": 1}
        return MetaLearner.from_specification(specification_of("soft_kmeans", settings) | shared)

    soft_kmeans(5, 8).save(tmp_path / "learner.pt")
    observed = _observed(Cell(3, 1))
    changed = Checkpoint.parse(f"{tmp_path / 'learner.pt'},guide.balance=known").row(32, Cell(3, 1), TOY)(observed)
    expected = predict_of(soft_kmeans(3, 32, "guide.balance=known"))(observed)
    torch.testing.assert_close(changed, expected)
    assert not torch.allclose(changed, predict_of(soft_kmeans(3, 32))(observed))


def test_a_learner_that_depends_on_the_dimension_has_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner("sib", "Flat", way=5, features=8).save(tmp_path / "sib.pt")
    methods = [PEERS["class_means"], Checkpoint.parse(str(tmp_path / "sib.pt"))]
    results = Comparison(methods, 2, 0, TOY).results("simulated", FIVE)
    assert [result["method"] for result in results] == ["class_means"]
    assert "no result of sib.pt: " in capsys.readouterr().err


def test_the_classifier_answers_task_by_task() -> None:
    row: Row = Classifier.parse("num_samples=1").row(32, FIVE, TOY)
    observed = _observed()
    one = row(observed.tasks(slice(1, 2)))
    torch.testing.assert_close(row(observed)[1:2], one)
    with pytest.raises(UsageError, match="expected arguments of FewShotClassifier"):
        Classifier.parse("unknown=1").row(32, FIVE, TOY)


@pytest.mark.parametrize("text", ["torch", "nowhere:row", "torch:nothing"])
def test_a_function_that_is_not_found_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="expected --function MODULE:NAME"):
        Function.parse(text)


def test_batches_are_the_tasks_of_the_stream() -> None:
    stream = stream_of("simulated", FIVE, 0)
    joined = torch.cat([episodes.query_x for episodes in batches(stream, 70)])
    torch.testing.assert_close(joined, stream.batch(0, 70).query_x, rtol=0, atol=0)


def test_histograms_of_gradients_tell_orientations_apart() -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 10, (16, 1))
    across, down = gradient_histograms(np.stack([ramp, ramp.T])).reshape(2, 9, 4, 9)
    np.testing.assert_allclose(np.square(across).sum((1, 2)), 1, rtol=1e-3)  # blocks of unit length
    assert (across.argmax(-1) == 0).all()
    assert (np.sort(down, -1)[..., :-2] < 1e-6).all() and set(down.argmax(-1).ravel()) <= {4, 5}


def test_a_text_belongs_to_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "LEAST", 3)
    modules = docstrings.texts_of_modules(("sklearn",))
    texts = [text for each in modules.values() for text in each]
    assert len(modules) == docstrings.MODULES and len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= docstrings.LONGEST and min(map(len, texts)) >= docstrings.SHORTEST


@pytest.mark.skipif(not os.environ.get("METABAYES_DATA"), reason="no METABAYES_DATA")
def test_no_test_alphabet_chooses_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path))
    source_of.cache_clear()
    test, tuning = source_of("omniglot_projected").bank, source_of("tuning_omniglot_hog").bank
    source_of.cache_clear()
    assert len({alphabet_of(name) for name in test.class_names}) == 12
    assert not {alphabet_of(name) for name in test.class_names} & {alphabet_of(name) for name in tuning.class_names}
    assert not set(TEST) & set(TUNING)


def test_an_unknown_bank_is_named() -> None:
    with pytest.raises(UsageError, match="got 'nowhere'"):
        source_of("nowhere")
