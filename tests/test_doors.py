"""Arrays of users give the same predictions in every type, layout, scale and thread, or a one-line message."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pyro_metabayes import FewShotClassifier, MetaLearner, UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.seeding import drawing, noise_of, restored_noise
from tests.pairs import Pair
from tests.test_classifier import learner_of, task
from tests.test_scores import random_tasks, stream_of

SUPPORT, LABELS, QUERY = task(4)
NAMES = np.array(["ash", "elm", "oak"])[LABELS]


def normalising(guide: str = "mc") -> MetaLearner:
    """An untrained learner that scales features to unit length, in float32."""
    specification = learner_of(guide, [4]).specification
    specification["backbone"] = {"_target_": "models.backbones.identity.Backbone"}
    torch.manual_seed(0)
    return MetaLearner.from_specification(specification)


RAW = learner_of("proto", [4])
UNIT = normalising("proto")


def answer(learner: MetaLearner, support: Any, query: Any, labels: Any = LABELS) -> np.ndarray:
    return learner.predict(support, labels, query, num_samples=3).probabilities.numpy()


# ---------------------------------------------------------------- layouts and types

LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "reversed": lambda x: x[::-1].copy()[::-1],
    "columns reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "fortran": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, 0)[::2],
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "big-endian": lambda x: x.astype(">f8"),
    "longdouble": lambda x: x.astype(np.longdouble),
    "objects": lambda x: x.astype(object),
    "decimals": lambda x: [[Decimal(float(value)) for value in row] for row in x],
    "frame": lambda x: pd.DataFrame(x, columns=list("abcd")),
    "nullable": lambda x: pd.DataFrame(x).astype("Float64"),
    "mixed": lambda x: pd.DataFrame(x).astype({0: "Float64", 1: object}),
    "nothing masked": np.ma.array,
    "tensor": torch.tensor,
    "gradient": lambda x: torch.tensor(x, requires_grad=True),
    "transposed": lambda x: torch.tensor(x.T.copy()).T,
    "tensors": lambda x: [torch.tensor(row, requires_grad=True) for row in x],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_answer_for_every_layout(layout: str) -> None:
    form = LAYOUTS[layout]
    np.testing.assert_array_equal(answer(RAW, form(SUPPORT), form(QUERY)), answer(RAW, SUPPORT, QUERY))
    expected = FewShotClassifier(None).fit(SUPPORT, NAMES).predict_proba(QUERY)
    np.testing.assert_array_equal(
        FewShotClassifier(None).fit(form(SUPPORT), NAMES).predict_proba(form(QUERY)), expected, strict=True
    )
    np.testing.assert_array_equal(FewShotClassifier(RAW).fit(form(SUPPORT), NAMES).predict(form(QUERY)), NAMES)


@settings(deadline=None, max_examples=25)
@given(
    steps=st.tuples(*[st.sampled_from([-2, -1, 1, 2])] * 2),
    dtype=st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "i1", ">i2", "i8", "u2", ">u4", "u8", "?"]),
    number=st.integers(1, 3),
)
def test_views_of_every_stride_and_type(steps: tuple[int, int], dtype: str, number: int) -> None:
    """A length-one axis included: numpy calls its negative stride contiguous, and torch refuses it."""
    values = np.random.default_rng(number).integers(0, 9, (2 * number, 8)).astype(dtype)
    view = values[:: steps[0], :: steps[1]][:number, :4]
    support = np.eye(4)[:3]
    query = np.array(view.tolist(), float)
    np.testing.assert_array_equal(answer(RAW, support, view, [0, 1, 2]), answer(RAW, support, query, [0, 1, 2]))


def test_a_reversed_support_set() -> None:
    classifier = FewShotClassifier(None).fit(SUPPORT[::-1], NAMES[::-1])
    np.testing.assert_array_equal(classifier.predict(QUERY[::-1]), NAMES[::-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_its_values(dtype: torch.dtype) -> None:
    support, query = (torch.tensor(x, dtype=dtype) for x in (SUPPORT, QUERY))
    plain = support.double().numpy(), query.double().numpy()
    np.testing.assert_array_equal(answer(RAW, support, query), answer(RAW, *plain))
    classifiers = FewShotClassifier(None).fit(support, NAMES), FewShotClassifier(None).fit(plain[0], NAMES)
    np.testing.assert_array_equal(classifiers[0].predict_proba(query), classifiers[1].predict_proba(plain[1]))


COUNTS: dict[str, Callable[[np.ndarray], Any]] = {
    **{kind: lambda y, kind=kind: y.astype(kind) for kind in ("i1", ">i4", "u1", "u2", "u4", "u8", ">u8", "O")},
    "list": lambda y: y.tolist(),
    "Int64": lambda y: pd.Series(y, dtype="Int64"),
    "category": lambda y: pd.Series(y, dtype="category"),
    "uint16 tensor": lambda y: torch.tensor(y.astype(np.uint16)),
    "uint64 tensor": lambda y: torch.tensor(y.astype(np.uint64)),
    "reversed": lambda y: y[::-1].copy()[::-1],
}


@pytest.mark.parametrize("form", COUNTS.values(), ids=COUNTS)
def test_labels_of_every_integer_type(form: Callable[[np.ndarray], Any]) -> None:
    np.testing.assert_array_equal(answer(RAW, SUPPORT, QUERY, form(LABELS)), answer(RAW, SUPPORT, QUERY))
    assert (FewShotClassifier(None).fit(SUPPORT, form(LABELS)).predict(QUERY) == LABELS).all()


@pytest.mark.parametrize("dtype", ["str", "object", "category", "string"])
def test_names_of_every_type(dtype: str) -> None:
    classifier = FewShotClassifier(None).fit(SUPPORT, pd.Series(NAMES).astype(dtype))
    assert list(classifier.predict(QUERY)) == list(NAMES)


HOLES = np.ma.array(SUPPORT, mask=SUPPORT > 6)
UNREADABLE: dict[str, tuple[Any, str]] = {
    "masked": (HOLES, "expected .* without masked entries, got .*masked"),
    "complex": (SUPPORT + 0j, "complex|Complex"),
    "complex tensor": (torch.tensor(SUPPORT + 0j), "complex128"),
    "complex frame": (pd.DataFrame(SUPPORT + 0j), "complex|Complex"),
    "sparse": (sparse.csr_matrix(SUPPORT), "toarray"),
    "sparse array": (sparse.coo_array(SUPPORT), "toarray"),
    "sparse tensor": (torch.tensor(SUPPORT).to_sparse(), "to_dense"),
    "missing": (pd.DataFrame(SUPPORT).astype("Float64").mask(pd.DataFrame(SUPPORT) > 6), "NA|NaN"),
    "text": (np.full((12, 4), "a", object), "'a'"),
    "nan": (np.where(SUPPORT > 6, np.nan, SUPPORT), "NaN"),
    "inf": (np.where(SUPPORT > 6, np.inf, SUPPORT), "infinity"),
    "beyond float64": (SUPPORT.astype(np.longdouble) * np.longdouble("1e4000"), "infinity"),
    "ragged": ([[1.0], [1.0, 2.0]] * 6, "unequal|several lengths"),
    "one axis": (SUPPORT[0], r"\[N, 4\]|Reshape your data"),
    "no axis": (1.0, r"\[N, 4\]|one value of type float; pass an array"),
    "nothing": (None, "NoneType"),
    "empty": (SUPPORT[:0], r"N >= 1|0 sample"),
    "dates": (np.zeros((12, 4), "M8[s]"), "datetime64|DTypePromotionError|cast"),
    "tensors of two shapes": ([torch.zeros(4), torch.zeros(3)], "of one shape and type in the list"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_line(name: str) -> None:
    value, message = UNREADABLE[name]
    doors: list[Callable[[], Any]] = [
        lambda: RAW.predict(value, LABELS, QUERY),
        lambda: RAW.predict(SUPPORT, LABELS, value),
        lambda: FewShotClassifier(RAW).fit(value, NAMES),
        lambda: FewShotClassifier(None).fit(value, NAMES),
        lambda: FewShotClassifier(None).fit(SUPPORT, NAMES).predict(value),
    ]
    for door in doors[: 3 if name == "dates" else 5]:  # scikit-learn takes dates for numbers
        with pytest.raises((UsageError, TypeError), match=message) as caught:
            door()
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
        assert isinstance(caught.value, UsageError) or "sparse" in name.lower() or name == "missing"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.Series([None, *NAMES[1:]], dtype="string"), "got 1 missing"),
        (np.array([None, *NAMES[1:]], object), r"got 1 missing \(None\)"),
        (pd.Series([None, *NAMES[1:]], dtype="category"), "got 1 missing"),
        (np.array([np.nan, *LABELS[1:]]), r"got 1 missing \(nan\)"),
        (pd.Series([None, *LABELS[1:]], dtype="Int64"), "got 1 missing"),
        (np.array([1, *NAMES[1:]], object), "labels of one type in y"),
        ([1, *NAMES[1:].tolist()], "labels of one type in y"),
        (np.ma.array(LABELS, mask=LABELS == 1), "got 4 masked entries"),
        (LABELS + 0j, "expected real numbers in y, got complex numbers"),
        (LABELS[:3], "got 12 rows in X and 3 labels in y; pass the labels of exactly the rows in X"),
        (np.stack([LABELS, LABELS], 1), "1d array.*; pass one label per row of X"),
        (None, "requires y to be passed.*; pass the label of every row"),
        (np.array([np.inf, *LABELS[1:]]), r"finite values in y, got .* in 1 of 12 rows; .*first is row 0\)"),
        (LABELS / 7, "expected class labels in y, such as text or integers. Unknown label type: continuous; convert y"),
        ("owl", r"1d array, got an array of shape \(\) instead; pass one label per row"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        FewShotClassifier(None).fit(SUPPORT, labels)
    assert len(str(caught.value).splitlines()) == 1 and ";" in str(caught.value)


TEXT: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda y: y,
    "objects": lambda y: y.astype(object),
    "bytes": lambda y: y.astype("S"),
    "list": lambda y: y.tolist(),
    "column": lambda y: pd.Series(y),
    "category": lambda y: pd.Series(y, dtype="category"),
}
LABELLING: dict[str, Callable[[Any], Any]] = {
    "classifier": lambda labels: FewShotClassifier(None).fit(SUPPORT, labels),
    "task": lambda labels: RAW.task(SUPPORT, labels),
}


@pytest.mark.parametrize("door", LABELLING)
@pytest.mark.parametrize("form", TEXT)
@pytest.mark.parametrize("missing", ["", " ", "\t"])
def test_empty_text_is_no_label(door: str, form: str, missing: str) -> None:
    """Many tools write it for a missing label."""
    labels = np.where(np.arange(12) % 5 == 2, missing, NAMES)
    message = r"got 2 missing \(.*\); pass the labelled rows only \(the first row without a label is row 2\)$"
    with pytest.raises(UsageError, match=rf"^expected a label in every row of (support_)?y, {message}"):
        LABELLING[door](TEXT[form](labels))


@pytest.mark.parametrize("door", LABELLING)
@pytest.mark.parametrize("form", TEXT)
@pytest.mark.parametrize("changed", ["elm ", " elm", "\telm\n"])
def test_labels_differ_in_more_than_white_space(door: str, form: str, changed: str) -> None:
    labels = np.where(np.arange(12) == 4, changed, NAMES)
    with pytest.raises(
        UsageError, match=r"surrounding white space, got .*elm.* and .*elm.*; remove .*strip\(\)"
    ) as caught:
        LABELLING[door](TEXT[form](labels))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", [form for form in TEXT if form != "bytes"])  # scikit-learn refuses bytes
def test_white_space_that_all_labels_of_a_class_have_is_kept(form: str) -> None:
    names = np.array(["ash ", "elm tree", " oak"])[LABELS]
    got = FewShotClassifier(None).fit(SUPPORT, TEXT[form](names)).predict(QUERY)
    np.testing.assert_array_equal(got, names.astype(got.dtype))


def test_minus_one_is_a_label() -> None:
    with pytest.warns(UserWarning, match="got 4 labels -1"):
        got = FewShotClassifier(None).fit(SUPPORT, LABELS - 1).predict(QUERY)
    np.testing.assert_array_equal(got, LABELS - 1)
    assert list(RAW.task(SUPPORT, LABELS - 1).predict(QUERY)) == list(LABELS - 1)


def with_entry(row: int, value: Any) -> np.ndarray:
    """SUPPORT as objects, with another entry in a row."""
    x = SUPPORT.astype(object)
    x[row, 1] = value
    return x


FRAME = pd.DataFrame(SUPPORT, columns=list("pqrs"))
FEATURES: dict[str, tuple[Any, str]] = {
    "NaN": (with_entry(5, np.nan), r"finite values in X, got NaN or infinity in 1 of 12 rows; .*first is row 5\)$"),
    "None": (with_entry(5, None), r"finite values in X, .* in 1 of 12 rows; .*first is row 5\)$"),
    "infinity": (with_entry(3, np.inf), r"finite values in X, .* in 1 of 12 rows; .*first is row 3\)$"),
    "NA": (pd.DataFrame(with_entry(5, pd.NA)).astype("Float64"), r"finite values in X, .*first is row 5\)$"),
    "text": (with_entry(2, "owl"), "expected numbers in X, got 'owl' in row 2; .* so convert it or remove the row$"),
    "an object": (with_entry(2, {}), r"expected numbers in X, got \{\} in row 2; .* so convert it or remove the row$"),
    "one row": (
        SUPPORT[0],
        r"expected X of shape \[rows, columns\], got shape \[4\]. Reshape .*\(1, -1\)\) is one row",
    ),
    "one column": (pd.Series(SUPPORT[:, 0]), r"got shape \[12\]. Reshape your data: "),
    "images": (SUPPORT.reshape(12, 2, 2), r"got shape \[12, 2, 2\]. Reshape your data: embed images first"),
    "no row": (SUPPORT[:0], r"0 sample\(s\).* minimum of 1 .*; pass at least one row$"),
    "no column": (SUPPORT[:, :0], r"0 feature\(s\).* minimum of 1 .*; pass the features as columns$"),
    "fewer columns": (SUPPORT[:, :3], "X has 3 features, but .* is expecting 4 features as input; encode these rows"),
    "ragged": ([[1.0], [1.0, 2.0]] * 6, "expected rows of the same length in X, got rows of unequal length; pass"),
    "complex": (SUPPORT + 0j, "expected real numbers in X, got complex numbers. .*; use .real or numpy.abs$"),
    "columns": (
        FRAME.rename(columns={"r": "z"}),
        "names should match.* - z .* missing: - r; pass the columns of the sup",
    ),
    "their order": (
        FRAME[list("qprs")],
        "names should match.*; pass the columns of the support rows, in the same order",
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_scikit_learn_s_refusals_say_what_to_do(name: str) -> None:
    """Of the support set, where it can be refused there, and of the queries."""
    value, message = FEATURES[name]
    fitted = FewShotClassifier("inductive").fit(FRAME, NAMES)
    doors = [lambda: fitted.predict_proba(value)]
    if name not in ("fewer columns", "columns", "their order"):
        doors += [lambda: FewShotClassifier("inductive").fit(value, NAMES)]
    for door in doors:
        with pytest.raises((UsageError, TypeError), match=message) as caught, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            door()
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
        assert isinstance(caught.value, UsageError) or name == "an object"  # of which check_estimator wants a TypeError


@pytest.mark.parametrize("labels", [[-1, 0, 1, 2], [0, -1, 3, 0], [-1.0, 0.0, 1.0, 1.0]])
def test_a_code_for_rows_without_a_label_is_warned_about(labels: list[Any]) -> None:
    """-1 beside two or more other classes, as scikit-learn's semi-supervised classifiers take it."""
    classifier, x = FewShotClassifier(None), np.eye(4)
    message = r"got 1 label -1, scikit-learn's code .* call fit\(X\[y != -1\], y\[y != -1\]\)$"
    with pytest.warns(UserWarning, match=message) as caught:
        classifier.fit(x, labels)
    assert caught[0].filename == __file__ and -1 in classifier.classes_


@pytest.mark.parametrize(
    "labels", [[-1, 1, 1, -1], [-1, 0, 0, -1], [-2, -1, 0, 1], [0, 1, 2, 3], ["-1", "a", "b", "c"]]
)
def test_a_class_may_be_called_minus_one(labels: list[Any]) -> None:
    assert len(FewShotClassifier(None).fit(np.eye(4), labels).classes_) == len(set(labels))  # a warning is an error


@pytest.mark.parametrize("labels", [NAMES, LABELS])
def test_features_and_labels_that_are_swapped(labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"; X and y seem to be swapped, so call fit\(X, y\) with the labels second$"):
        FewShotClassifier(None).fit(labels, SUPPORT)


def test_strings_of_numbers_are_numbers() -> None:
    expected = FewShotClassifier(None).fit(SUPPORT, NAMES).predict_proba(QUERY)
    got = FewShotClassifier(None).fit(SUPPORT.astype(str), NAMES).predict_proba(QUERY.astype(str))
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(UsageError, match=r"^expected numbers in X, got text, such as '.*'; convert X to numbers$"):
        FewShotClassifier(RAW).fit(SUPPORT.astype(str), NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"balance": "knwon"},
            "expected balance='known' .* or None, the default .*, got 'knwon'; did you mean 'known'?",
        ),
        ({"balance": "even"}, "expected balance='known' .* got 'even'; remove balance or set one of these"),
        ({"balance": True}, "expected balance='known' .* got True; did you mean 'known'?"),
        ({"balance": False}, "expected balance='known' .* got False; remove balance or set one of these"),
        ({"balance": ["known"]}, "expected balance='known' .* got"),
        (
            {"learner": "inductive", "balance": True},
            "expected learner='transductive' for balance=True, got 'inductive'",
        ),
        ({"learner": "inductve"}, "or a file or folder that exists, got 'inductve'; did you mean 'inductive'?"),
        ({"random_state": "a"}, "'a' cannot be used to seed .*; set random_state to an integer, a RandomState or None"),
    ],
)
def test_wrong_settings_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        FewShotClassifier(**arguments).fit(SUPPORT, NAMES)


def test_a_pretrained_learner_that_is_misspelt() -> None:
    with pytest.raises(
        UsageError, match=r"one of transductive, inductive, got 'inductve'; did you mean 'inductive'\?$"
    ):
        MetaLearner.pretrained("inductve")


@pytest.mark.parametrize("labels", [NAMES, NAMES.astype(object), NAMES.tolist(), pd.Series(NAMES), NAMES.astype("S")])
def test_a_learner_sends_names_to_the_classifier(labels: Any) -> None:
    with pytest.raises(UsageError, match=r"expected numbers in support_y, got .*FewShotClassifier accepts class names"):
        RAW.predict(SUPPORT, labels, QUERY)


@pytest.mark.parametrize("number", ["a", 2.5, None, True, [3]])
def test_num_samples_is_a_whole_number(number: Any) -> None:
    for door in (
        lambda: RAW.predict(SUPPORT, LABELS, QUERY, number),
        lambda: FewShotClassifier(RAW, num_samples=number).fit(SUPPORT, NAMES),
    ):
        with pytest.raises(UsageError, match=r"^expected num_samples to be an integer >= 1, got"):
            door()


@pytest.mark.parametrize("learner", [5, [], torch.nn.Linear(2, 2)])
def test_a_learner_that_is_none(learner: Any) -> None:
    with pytest.raises(UsageError, match=r"^expected learner to be .*, a MetaLearner, the folder of a run or None"):
        FewShotClassifier(learner).fit(SUPPORT, NAMES)


@pytest.mark.parametrize("guide", ["sib", "mean_field"])
def test_a_guide_for_fewer_classes_names_those_for_any(guide: str) -> None:
    message = r"got 3; train with task\.way=3, .* mc, savi, proto, or sib with guide\.synthetic_gradient=equivariant$"
    with pytest.raises(UsageError, match=message):
        FewShotClassifier(learner_of(guide, [4], 5)).fit(SUPPORT, NAMES)
    for any_way, options in {"mc": {}, "savi": {}, "proto": {}, "sib": {"synthetic_gradient": "equivariant"}}.items():
        assert learner_of(any_way, [4], 5, **options).guide.num_classes is None


# ---------------------------------------------------------------- images

CONV = learner_of("proto", [1, 16, 16]).float()
PIXELS = [np.clip(x * 20 + 128, 0, 255).astype(np.uint8) for x in (task(1, 16, 16)[0], task(1, 16, 16)[2])]
AS: dict[str, Callable[[np.ndarray], Any]] = {
    **{kind: lambda x, kind=kind: x.astype(kind) for kind in ("u1", "u2", "u4", "u8", "i2", ">i4", "i8", "O")},
    "float32": lambda x: x.astype(np.float32) / 255,
    "float64": lambda x: x / 255,
    "uint16 tensor": lambda x: torch.tensor(x.astype(np.uint16)),
    "int32 tensor": lambda x: torch.tensor(x.astype(np.int32)),
}


@settings(deadline=None, max_examples=20)
@given(support=st.sampled_from(sorted(AS)), query=st.sampled_from(sorted(AS)))
def test_images_of_any_two_types_have_one_answer(support: str, query: str) -> None:
    expected = answer(CONV, *PIXELS)
    got = answer(CONV, AS[support](PIXELS[0]), AS[query](PIXELS[1]))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    if not {"float32", "float64", "O"} & {support, query}:  # scikit-learn turns objects into floats
        np.testing.assert_array_equal(got, expected)
        classifier = FewShotClassifier(CONV).fit(AS[support](PIXELS[0]), NAMES)
        np.testing.assert_array_equal(classifier.predict_proba(AS[query](PIXELS[1])), expected)


def test_images_of_16_bits() -> None:
    """257 = 65535 / 255, also in an int32, as Pillow opens them; a darker query image has the scale of the support."""
    support, query = (x.astype(np.int32) * 257 for x in PIXELS)
    query[0] //= 300
    expected = answer(CONV, support / 65535, query / 65535)
    for kind in ("u2", "i4", "i8"):
        np.testing.assert_allclose(answer(CONV, support.astype(kind), query.astype(kind)), expected, atol=1e-5)
        one = answer(CONV, support.astype(kind), query[:1].astype(kind))
        np.testing.assert_allclose(one, expected[:1], atol=1e-5)


def test_black_and_white_as_bool() -> None:
    support, query = (x > 128 for x in PIXELS)
    np.testing.assert_array_equal(answer(CONV, support, query), answer(CONV, support * 1.0, query * 1.0))


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        (lambda x: x * 1.0, None, r"images in \[0, 1\] in support_x.* got values from .* to 255"),
        (None, lambda x: x * 1.0, r"images in \[0, 1\] in query_x"),
        (lambda x: (x - 128.0) / 40, None, r"images in \[0, 1\] in support_x.* from -"),
        (lambda x: x / 127.5 - 1, lambda x: x / 127.5 - 1, r"images in \[0, 1\] in support_x, .*do not standardise"),
        (lambda x: x.astype(int) - 1, None, r"integer images from 0 to 255, .*got values from -1"),
        (lambda x: x.astype(int) * 300, None, "or to 65535 for 16 bits, in support_x, got values from"),
        (lambda x: x.astype(int), lambda x: x.astype(int) * 257, "from 0 to 255 in query_x, as in support_x"),
        (lambda x: (x > 128).astype(int), None, "got only values 0 and 1; pass black-and-white images as bool"),
        (lambda x: (x > 128).astype(np.uint8), None, "got only values 0 and 1; pass black-and-white images as bool"),
    ],
)
def test_images_of_another_range_are_refused(support: Any, query: Any, message: str) -> None:
    same = lambda x: x  # noqa: E731
    arrays = (support or same)(PIXELS[0]), (query or same)(PIXELS[1])
    with pytest.raises(UsageError, match=message):
        answer(CONV, *arrays)


def test_an_overshoot_of_interpolation_is_an_image() -> None:
    assert np.isfinite(answer(CONV, PIXELS[0] / 255 * 1.2 - 0.1, PIXELS[1])).all()


def test_integers_that_are_features_stay_as_they_are() -> None:
    support, query = (np.abs(x * 10).astype(np.uint8) for x in (SUPPORT, QUERY))
    expected = answer(RAW, support.astype(float), query.astype(float))
    np.testing.assert_array_equal(answer(RAW, support, query), expected)
    np.testing.assert_array_equal(answer(RAW, support, query.astype(float)), expected)


# ---------------------------------------------------------------- scale

EXPONENTS = st.integers(-290, 290)


@settings(deadline=None, max_examples=40)
@given(support=EXPONENTS, query=EXPONENTS)
def test_features_of_unit_length_have_no_scale(support: int, query: int) -> None:
    got = answer(UNIT, SUPPORT * 10.0**support, QUERY * 10.0**query)
    np.testing.assert_allclose(got, answer(UNIT, SUPPORT, QUERY), atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-40, 35))
def test_in_single_precision_too(exponent: int) -> None:
    """The backbone alone, as a bank of features gets it; rows of usual size keep their digits."""
    x = torch.tensor(SUPPORT, dtype=torch.float32)
    plain = torch.nn.functional.normalize(x, dim=-1)
    assert torch.equal(UNIT.backbone(x), plain)
    scaled = (torch.tensor(SUPPORT) * 10.0**exponent).float()
    torch.testing.assert_close(UNIT.backbone(scaled), plain, atol=1e-5 if exponent > -37 else 1e-2, rtol=0)


@pytest.mark.parametrize("learner", [UNIT, normalising("mc")], ids=["proto", "mc"])
@pytest.mark.parametrize("name", ["support_x", "query_x"])
def test_a_row_of_zeros_has_no_direction(learner: MetaLearner, name: str) -> None:
    arrays = {"support_x": SUPPORT, "query_x": QUERY}
    arrays[name] = arrays[name] * (np.arange(12) != 5)[:, None]
    message = rf"expected rows with a nonzero value in {name}, got 1 of 12 .* first is row 5\)$"
    with pytest.raises(UsageError, match=message):
        learner.predict(support_y=LABELS, **arrays)


@settings(deadline=None, max_examples=40)
@given(exponent=st.integers(-300, 300), offset=st.sampled_from([0.0, 1e3, -1e6]))
def test_nearest_class_means_have_neither_scale_nor_origin(exponent: int, offset: float) -> None:
    """Probabilities of distances that vanish are equal, the nearest mean is not."""
    support, query = ((x + offset) * 10.0**exponent for x in (SUPPORT, QUERY))
    classifier = FewShotClassifier(None).fit(support, NAMES)
    np.testing.assert_array_equal(classifier.predict(query), NAMES)
    probabilities = classifier.predict_proba(query)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    if exponent < -20:
        np.testing.assert_allclose(probabilities, 1 / 3, atol=1e-12)
    elif exponent > 20:
        np.testing.assert_allclose(probabilities.max(1), 1, atol=1e-12)


def test_support_points_that_are_all_equal() -> None:
    for value in (0.0, 1e-300, 1e300):
        probabilities = (
            FewShotClassifier(None).fit(np.full((3, 2), value), [0, 1, 2]).predict_proba(np.full((2, 2), value))
        )
        np.testing.assert_allclose(probabilities, 1 / 3)


@pytest.mark.parametrize("factor", [1e39, 1e300, 1e-50, 1e-300])
def test_raw_features_that_single_precision_cannot_hold(factor: float) -> None:
    learner = learner_of("proto", [4]).float()
    for arrays in ((SUPPORT * factor, QUERY), (SUPPORT, QUERY * factor)):
        with pytest.raises(
            UsageError, match=r"^expected values in the range of float32 in \w+_x, got a row with the largest"
        ):
            answer(learner, *arrays)


@pytest.mark.parametrize("guide", ["proto", "mc", "sib", "laplace"])
@pytest.mark.parametrize("factor", [1e19, 1e25, 1e37])
def test_raw_features_whose_scores_overflow(guide: str, factor: float) -> None:
    learner = learner_of(guide, [4]).float()
    try:
        assert np.isfinite(answer(learner, SUPPORT * factor, QUERY * factor)).all()
    except UsageError as error:
        assert "expected finite class probabilities, got NaN, because numbers overflow in float32" in str(error)
        assert len(str(error).splitlines()) == 1


# ---------------------------------------------------------------- noise


def states() -> list[Any]:
    numpy = np.random.get_state(legacy=False)["state"]["key"]
    return [torch.get_rng_state().numpy().tolist(), numpy.tolist(), random.getstate()]


def in_threads(call: Callable[[], Any], calls: int = 40) -> list[Any]:
    """Results of calls in 8 threads, while other calls draw from the global generator and seed it."""
    with ThreadPoolExecutor(8) as pool:
        disturb = [pool.submit(lambda seed=seed: (torch.manual_seed(seed), torch.randn(1000))) for seed in range(20)]
        futures = [pool.submit(call) for _ in range(calls)]
        disturb += [pool.submit(torch.randn, 1000) for _ in range(20)]
        return [future.result() for future in (*futures, *disturb)][:calls]


STOCHASTIC = ["mc", "mean_field", "sib", "abml", "savi"]


@pytest.mark.parametrize("guide", STOCHASTIC)
def test_one_answer_in_all_threads(guide: str) -> None:
    learner = learner_of(guide, [4])
    classifier = FewShotClassifier(learner, num_samples=5, random_state=1).fit(SUPPORT, NAMES)
    expected = classifier.predict_proba(QUERY)
    for got in in_threads(lambda: classifier.predict_proba(QUERY)):
        np.testing.assert_array_equal(got, expected)
    prediction = learner.predict(SUPPORT, LABELS, QUERY, 5, seed=2)
    assert prediction.spread.max() > 0
    for got in in_threads(lambda: learner.predict(SUPPORT, LABELS, QUERY, 5, seed=2)):
        assert torch.equal(got.probabilities, prediction.probabilities) and torch.equal(got.spread, prediction.spread)


@settings(deadline=None, max_examples=15)
@given(
    guide=st.sampled_from(STOCHASTIC),
    draws=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    calls=st.integers(2, 12),
    classifier=st.booleans(),
)
def test_threads_do_not_move_an_answer(guide: str, draws: int, seed: int, calls: int, classifier: bool) -> None:
    """Of the learner and of the classifier, for any guide, number of draws, seed and number of calls."""
    learner = learner_of(guide, [4])
    fitted = FewShotClassifier(learner, num_samples=draws, random_state=seed).fit(SUPPORT, NAMES)

    def answer() -> Any:
        if classifier:
            return fitted.predict_proba(QUERY)
        return learner.predict(SUPPORT, LABELS, QUERY, draws, seed=seed).probabilities.numpy()

    expected = answer()
    for got in in_threads(answer, calls):
        np.testing.assert_array_equal(got, expected)


def test_one_evaluation_in_all_threads() -> None:
    learner, episodes = Pair("mc", "conditional").learner(), random_tasks()
    validation = torch.distributions.Distribution._validate_args

    def metrics() -> dict[str, Any]:
        found = evaluate(learner, stream_of(episodes), EvalSettings(3, samples=4), seed=0, progress=False).metrics
        return {name: value for name, value in found.items() if name != "seconds"}

    expected = metrics()
    assert all(got == expected for got in in_threads(metrics, calls=16))
    assert torch.distributions.Distribution._validate_args == validation


def test_predictions_leave_the_random_states_alone(tmp_path: Any) -> None:
    learner = learner_of("mc", [4])
    learner.save(tmp_path / "learner.pt")
    evaluated, stream = Pair("mc", "conditional").learner(), stream_of(random_tasks())
    before = states()
    learner.predict(SUPPORT, LABELS, QUERY)
    classifier = FewShotClassifier(tmp_path / "learner.pt", random_state=0).fit(SUPPORT, NAMES)
    classifier.predict_proba(QUERY)
    classifier.predict(QUERY)
    FewShotClassifier(random_state=0).fit(SUPPORT, NAMES).predict(QUERY)
    evaluate(evaluated, stream, EvalSettings(2, samples=2), seed=0, progress=False)
    unchanged = states() == before  # thousands of numbers, which a message need not show
    assert unchanged


DRAWS: dict[str, Callable[[], torch.Tensor]] = {
    "randn": lambda: torch.randn(3),
    "rand": lambda: torch.rand(3, 2),
    "randint": lambda: torch.randint(9, (5,)),
    "randperm": lambda: torch.randperm(7),
    "randn_like": lambda: torch.randn_like(torch.zeros(3)),
    "normal": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "in place": lambda: torch.zeros(3).uniform_(),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(5), 3),
    "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample((4,)),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(20)),
    "categorical": lambda: torch.distributions.Categorical(torch.ones(4)).sample((6,)),
    "without a generator": lambda: torch.native_dropout(torch.ones(20), 0.5, True)[0],
    "gumbel": lambda: torch.nn.functional.gumbel_softmax(torch.zeros(4)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_own_noise_has_the_digits_of_the_seed(draw: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(11)
    expected = [draw(), draw()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with noise_of(11), drawing():
        got = [draw()]
        with noise_of(3), drawing():
            draw()
        got.append(draw())
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_is_passed_is_used() -> None:
    expected = torch.randn(3, generator=torch.Generator().manual_seed(4))
    with noise_of(11), drawing():
        assert torch.equal(torch.randn(3, generator=torch.Generator().manual_seed(4)), expected)


def test_no_warning_for_usual_arrays() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in LAYOUTS.values():
            RAW.predict(form(SUPPORT), LABELS, form(QUERY))


def test_restored_noise_restores_own_generators_too() -> None:
    with noise_of(11), drawing():
        with restored_noise():
            first = torch.randn(3)
        assert torch.equal(torch.randn(3), first)
        with restored_noise():
            second = torch.randn(3)
        assert torch.equal(torch.randn(3), second) and not torch.equal(first, second)
