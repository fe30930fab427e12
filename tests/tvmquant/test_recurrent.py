"""A convolutional network with a recurrent head, from an ONNX file to a library."""

import numpy as np
from onnx import helper

from tests.tvmquant.networks import compile_network, float_outputs, sqnr_db
from tests.tvmquant.test_signals import write
from tvmquant.deploy.build import build
from tvmquant.deploy.loader import load
from tvmquant.simulator import simulate


def test_projections_are_integers_and_the_recurrence_is_one_kernel(tmp_path):
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "stem"),
        node("Relu", ["a"], ["r"], "relu"),
        node("Transpose", ["r"], ["t"], "steps_first", perm=[2, 0, 1]),
        node("GRU", ["t", "w1", "r1"], ["", "s"], "recurrence", hidden_size=6),
        node("Squeeze", ["s", "first"], ["h"], "squeeze"),
        node("Gemm", ["h", "w2"], ["y"], "head"),
    ]
    weights = {
        "w0": (8, 2, 3),
        "w1": (1, 18, 8),
        "r1": (1, 18, 6),
        "first": np.array([0], np.int64),
        "w2": (6, 4),
    }
    path = write(tmp_path / "recurrent.onnx", nodes, (2, 12), weights)
    signals = np.random.default_rng(0).standard_normal((8, 2, 12)).astype(np.float32)
    network = compile_network(path, signals)
    manifest = build(network.quantized, out=tmp_path / "library", batch=2)
    assert {entry["op"] for entry in manifest.float_audit} >= {"recurrent"}
    assert "matmul" not in {entry["op"] for entry in manifest.float_audit}
    (expected,) = simulate(network.quantized, signals)
    np.testing.assert_allclose(
        load(tmp_path / "library")(signals[:2]), expected[:2], rtol=1e-4, atol=1e-4
    )
    assert sqnr_db(float_outputs(network)[0], expected) > 30
    build(network.graph, out=tmp_path / "float")
    floats = load(tmp_path / "float")(signals[:1])
    np.testing.assert_allclose(floats, float_outputs(network)[0][:1], rtol=1e-4, atol=1e-5)
