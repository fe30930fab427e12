"""Recurrent layers equal ONNX Runtime, in torch; their kernels are compared in tests/schedules."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.twin import Twin

STEPS, FEATURES, SIZE = 4, 3, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(make_model, kind, inputs=("x", "w", "r", "b"), outputs=("y", "h"), **attributes):
    """Return a model of one layer that reads (N, steps, features)."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rng = np.random.default_rng(5)

    def draw(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    rows = GATES[kind] * SIZE
    constants = {
        "w": draw(directions, rows, FEATURES),
        "r": draw(directions, rows, SIZE),
        "b": draw(directions, 2 * rows),
        "s": draw(directions, 1, SIZE),
        "lengths": np.full(2, STEPS, np.int32),
        "short": np.array([STEPS, 2], np.int32),
    }
    batch_first = attributes.get("layout", 0)
    read = list(inputs) if batch_first else ["t", *inputs[1:]]
    nodes = [
        *([] if batch_first else [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])]),
        helper.make_node(kind, read, list(outputs), "op", hidden_size=SIZE, **attributes),
    ]
    used = {name: value for name, value in constants.items() if name in inputs}
    shape = ("N", STEPS, FEATURES)
    return make_model(nodes, {"x": shape}, outputs=outputs, constants=used)


def check(model, batch=2):
    graph = load_onnx(model)
    x = np.random.default_rng(6).standard_normal((batch, STEPS, FEATURES)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for found, expected in zip(
        Twin(graph.module)(torch.from_numpy(x)), session.run(None, {"x": x}), strict=True
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_directions(make_model, kind, direction):
    check(layer(make_model, kind, direction=direction))


def test_the_cell_is_an_output_as_well(make_model):
    check(layer(make_model, "LSTM", outputs=("y", "h", "c"), direction="bidirectional"))


def test_a_reset_behind_the_weights(make_model):
    check(layer(make_model, "GRU", linear_before_reset=1))


def test_without_bias_and_with_full_lengths(make_model):
    check(layer(make_model, "LSTM", inputs=("x", "w", "r", "", "lengths")))


def test_initial_states(make_model):
    inputs = ("x", "w", "r", "b", "", "s", "s")
    check(layer(make_model, "LSTM", inputs=inputs), batch=1)


def test_the_batch_may_come_first(make_model):
    """ONNX Runtime refuses this layout, which permutes inputs and outputs only."""
    x = torch.randn(2, STEPS, FEATURES)
    options = {"direction": "bidirectional"}
    expected = Twin(load_onnx(layer(make_model, "GRU", **options)).module)(x)
    found = Twin(load_onnx(layer(make_model, "GRU", layout=1, **options)).module)(x)
    torch.testing.assert_close(found[0], expected[0].permute(2, 0, 1, 3))
    torch.testing.assert_close(found[1], expected[1].permute(1, 0, 2))


def test_rectified_units(make_model):
    check(layer(make_model, "RNN", activations=["Relu"]))


REJECTED = {
    "activations are Sigmoid, Relu, Tanh": ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    "clips its gates at 3": ("GRU", {"clip": 3.0}),
    "input and forget gates": ("LSTM", {"input_forget": 1}),
    r"sequences are \[4, 2\]": ("LSTM", {"inputs": ("x", "w", "r", "b", "short")}),
    "peepholes": ("LSTM", {"inputs": ("x", "w", "r", "b", "", "s", "s", "s")}),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    kind, options = REJECTED[reason]
    with pytest.raises(UnsupportedModelError, match=rf"op \({kind}\): .*{reason}"):
        load_onnx(layer(make_model, kind, **options))
