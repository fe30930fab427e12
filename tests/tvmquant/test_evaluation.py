import json
import math

import numpy as np
import pytest

from tvmquant.deploy.manifest import TensorInfo
from tvmquant.errors import DataError
from tvmquant.evaluation import Evaluation, agreement, evaluate, float_network, top_k
from tvmquant.output_quality import decibels, poor_outputs, signal_and_noise


class FixedBatch:
    """A model of a fixed batch, by default one of logits (`one_hot`)."""

    def __init__(self, batch, function=None):
        self.inputs = [TensorInfo("x", [batch, 2])]
        self.batches = []
        self.function = function or one_hot

    def __call__(self, x):
        self.batches.append(len(x))
        return self.function(x)


def one_hot(x):
    """Return one-hot logits of the first value of each item."""
    return np.eye(12, dtype=np.float32)[x[:, 0].astype(int)]


def items(count):
    return np.stack([np.arange(count) % 12, np.zeros(count)], axis=1).astype(np.float32)


def test_top_1_is_argmax_even_among_equal_logits():
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, size=(500, 12))
    labels = rng.integers(0, 12, size=500)
    np.testing.assert_array_equal(top_k(logits, labels, 1), logits.argmax(1) == labels)


def test_top_k_is_the_set_of_a_stable_sort():
    rng = np.random.default_rng(1)
    logits = rng.integers(-3, 4, size=(300, 9))
    labels = rng.integers(0, 9, size=300)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top_k(logits, labels, 5), (order == labels[:, None]).any(1))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_named(label):
    with pytest.raises(DataError, match=rf"label {label} is not a class of the model.*0\.\.2"):
        top_k(np.zeros((2, 3)), np.array([0, label]), 1)


def test_class_maps_have_no_top_k():
    with pytest.raises(DataError, match="one row for each"):
        top_k(np.zeros((2, 3, 4, 4)), np.zeros(2, int), 1)


def test_agreement_compares_the_class_at_every_position():
    first = np.zeros((1, 3, 1, 2))
    second = np.zeros((1, 3, 1, 2))
    first[0, 1] = 1
    second[0, 1, 0, 0] = 2
    second[0, 2, 0, 1] = 2
    assert agreement(first, second).tolist() == [[[True, False]]]


def test_agreement_wants_equal_shapes():
    with pytest.raises(DataError, match=r"\(1, 3\) and \(1, 4\)"):
        agreement(np.zeros((1, 3)), np.zeros((1, 4)))


def sqnr_db(reference, result):
    return decibels(*signal_and_noise(reference, result))


def test_sqnr_of_known_noise():
    signal = np.full((4, 5), 10.0)
    assert sqnr_db(signal, signal + 0.1) == pytest.approx(40.0)
    assert sqnr_db(signal, signal) == math.inf


def test_infinite_sqnr_is_valid_json():
    document = Evaluation(count=1, sqnr_db=math.inf).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["sqnr_db"] is None


@pytest.mark.parametrize("count", [1, 3, 4, 17])
def test_a_fixed_batch_is_fed_in_full_chunks(count):
    model = FixedBatch(4)
    result = evaluate(model, items(count), reference=one_hot)
    assert set(model.batches) == {4}
    assert result.count == count
    assert result.agreement == 100.0
    assert result.sqnr_db == math.inf


def test_accuracies_are_those_of_the_labels():
    data = [
        (row, int(row[0]) if i % 4 else (int(row[0]) + 1) % 12) for i, row in enumerate(items(24))
    ]
    seen = []
    result = evaluate(one_hot, data, reference=one_hot, progress=lambda d, t: seen.append((d, t)))
    assert result.top1 == result.reference_top1 == 75.0
    assert seen[-1][0] == 24


def test_sums_over_batches_equal_one_batch():
    rng = np.random.default_rng(2)
    data = rng.normal(size=(50, 6)).astype(np.float32)
    matrix = rng.normal(size=(6, 12)).astype(np.float32)

    def reference(x):
        return x @ matrix

    def model(x):
        return np.round(reference(x))

    result = evaluate(model, data, reference=reference)
    assert result.sqnr_db == pytest.approx(sqnr_db(reference(data), model(data)))
    assert result.agreement == pytest.approx(100 * agreement(reference(data), model(data)).mean())
    assert result.top1 is None


def test_without_a_reference_only_accuracy_is_measured():
    data = [(row, int(row[0])) for row in items(12)]
    result = evaluate(one_hot, data)
    assert (result.top1, result.top5) == (100.0, 100.0)
    assert result.agreement is result.sqnr_db is result.reference_top1 is None


def test_few_classes_have_no_top_5():
    result = evaluate(lambda x: x, [(row, 0) for row in items(3)])
    assert result.top1 is not None
    assert result.top5 is None


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        evaluate(lambda x: x * np.nan, items(2))


def test_trailing_extents_of_one_are_dropped():
    data = [(row, int(row[0])) for row in items(12)]
    assert evaluate(lambda x: one_hot(x)[:, :, None, None], data).top1 == 100.0


class Fixed:
    """The difference of two inputs, and their sum, of exactly 4 items."""

    inputs = [TensorInfo("a", [4, 12]), TensorInfo("b", [4, 12])]  # noqa: RUF012
    outputs = [TensorInfo("difference", [4, 12]), TensorInfo("sum", [4, 12])]  # noqa: RUF012

    def __call__(self, a, b):
        assert len(a) == len(b) == 4
        return a - b, np.zeros_like(a)


def test_several_inputs_and_outputs():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 6, 12)).astype(np.float32)
    result = evaluate(Fixed(), {"b": b, "a": a}, reference=lambda a, b: (a - b + 0.01, a + b))
    assert result.count == 6
    difference, total = result.outputs
    assert difference.name == "difference"
    assert difference.sqnr_db == result.sqnr_db == pytest.approx(sqnr_db(a - b + 0.01, a - b))
    assert (total.sqnr_db, total.constant) == (0.0, 0.0)
    (warning,) = poor_outputs(result.outputs[1:])
    assert warning.startswith("output 'sum': its values are all 0,")
    assert json.loads(json.dumps(result.to_dict()))["outputs"][1]["constant"] == 0.0


def test_library_against_its_float_model(small_onnx, small_data, small_library):
    import tvmquant

    graph = tvmquant.load_onnx(small_onnx)
    result = tvmquant.evaluate(tvmquant.load(small_library), str(small_data), reference=graph)
    assert result.count == 40
    assert result.reference_top1 == 100.0
    assert result.top1 == result.agreement >= 95.0
    assert 25.0 < result.sqnr_db < 80.0


def test_float_network_takes_any_batch(small_onnx, small_data):
    import tvmquant

    network = float_network(tvmquant.load_onnx(small_onnx))
    with np.load(small_data) as data:
        (logits,) = network(data["images"][:7])
        np.testing.assert_array_equal(logits.argmax(1), data["labels"][:7])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.repeat(x, 4, axis=0),  # four rows for each item
        lambda x: x.reshape(-1),
        lambda x: x[0] if len(x) == 1 else x,  # the batch is dropped
        lambda x: x.sum(axis=1),  # one number
    ],
)
def test_outputs_that_do_not_begin_with_the_batch(batch, function):
    model = FixedBatch(batch, function)
    result = evaluate(model, items(5), reference=lambda x: function(x) * 1.01)
    (output,) = result.outputs
    assert result.count == 5
    assert output.sqnr_db == pytest.approx(40.0, abs=0.2)
    assert result.agreement in (100.0, None)
