"""What is exported and imported again is the same network: the same integers, the same widths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests.tvmquant.export.graphs import checked, choices_of
from tests.tvmquant.qdq_models import Qdq
from tests.tvmquant.random_graphs import LENGTHS, RandomGraph
from tvmquant.errors import TVMQuantError
from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.quantization import apply_calibration, calibrate, is_quantized
from tvmquant.simulator import simulate


def returned(network: Graph, **options) -> Graph | None:
    """Export and import an annotated graph; None where nothing of it was quantized."""
    imported = load_onnx(checked(network, **options).model)
    return apply_calibration(imported, None) if is_quantized(imported) else None


def check(network: Graph, images: np.ndarray, **options) -> Graph:
    """Compare all results, bit for bit."""
    again = returned(network, **options)
    before, after = (pipeline.integerize(graph.module) for graph in (network, again))
    for expected, found in zip(simulate(before, images), simulate(after, images), strict=True):
        np.testing.assert_array_equal(found, expected)
    kept, found = (sorted(entry.op for entry in float_audit(m)) for m in (before, after))
    assert kept == found
    return again


@pytest.mark.parametrize(
    ("choice", "packs"),
    [
        *((c, True) for c in ("w8a8", "w4a4", "w4a8g32", "w6a6", "w3a5", "w2a2", "w1a8", "w1a1")),
        ("w4a4", False),
        ("w4a8g32", False),
        *(pytest.param(c, False, marks=pytest.mark.slow) for c in ("w8a8", "w6a6", "w3a5", "w2a2")),
    ],
)
def test_layers_of_every_operation_and_width(layers, choice, packs):
    graph, calibration, images = layers
    choices = choices_of(graph, choice)
    network = apply_calibration(graph, calibration, choices=choices)
    again = check(network, images[:4], packs=packs)
    found = {layer.id: str(layer.usual) for layer in quantizable_layers(again)}
    if "g" not in choice:
        assert found == {name: str(chosen) for name, chosen in choices.items()}
    else:  # groups that are no blocks, or are stored in bytes, are multiplied out
        assert ("w4a8g32" in found.values()) == packs
        assert set(found.values()) <= {"w4a8g32", "w4a8", "w8a8"}


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_every_operator_that_becomes_a_kernel(mixture, scheme):
    graph, _, images = mixture
    calibration = calibrate(graph, images, batch_size=len(images), activation_scheme=scheme)
    check(apply_calibration(graph, calibration, activation_scheme=scheme), images[:4], opset=25)


GRAPHS = given(
    st.integers(0, 2**32 - 1), st.integers(LENGTHS[0], LENGTHS[-1]),
    st.sampled_from(["asymmetric", "symmetric", "auto"]), st.booleans(),
)  # fmt: skip


@settings(max_examples=8)
@GRAPHS
def test_random_graphs(seed, length, scheme, packs):
    check_random_graph(seed, length, scheme, packs)


@pytest.mark.slow
@settings(max_examples=50)
@GRAPHS
def test_many_random_graphs(seed, length, scheme, packs):
    check_random_graph(seed, length, scheme, packs)


def check_random_graph(seed, length, scheme, packs):
    drawn = RandomGraph(seed, length)
    try:
        graph = load_onnx(drawn.model)
        calibration = calibrate(graph, drawn.data(), activation_scheme=scheme)
        network = apply_calibration(
            graph, calibration, choices=drawn.choices(graph), activation_scheme=scheme
        )
    except TVMQuantError:
        return
    if returned(network, packs=packs) is not None:
        check(network, drawn.data()[:4], packs=packs)


@pytest.mark.parametrize("activation", ["uint8", "int8", "int16"])
@pytest.mark.parametrize(
    "weight", [{}, {"axis": 0}, {"dtype": "uint8", "zero": 90, "low": 0, "high": 255}], ids=str
)
def test_models_of_others_round_as_they_did(activation, weight):
    """Their ties go to even, whichever way they come."""
    if activation == "int16" and weight.get("dtype") == "uint8":
        return  # such a layer stays float
    g = Qdq(activation, 100 if activation == "uint8" else -20)
    first = g.node("Conv", g.pair("x"), g.weight((6, 4, 3, 3), **weight), g.bias(6))
    pooled = g.node("AveragePool", g.pair(g.node("Relu", first)), kernel_shape=[2, 1])
    network = apply_calibration(load_onnx(g.model(g.pair(pooled))), None)
    images = np.random.default_rng(5).normal(0, 2, (4, 4, 6, 5)).astype(np.float32)
    exported = checked(network)
    assert {p.key: p.value for p in exported.model.metadata_props}["tvmquant.ties"] == "even"
    check(network, images)


def test_integers_at_the_border_stay_there():
    g = Qdq("int8", -3)
    real = g.node("DequantizeLinear", "x", np.float32(0.05), np.int8(-3))
    y = g.quantized(g.node("Conv", real, g.weight((6, 4, 3, 3)), g.bias(6)))
    model = g.model(y, element=TensorProto.INT8)
    network = apply_calibration(load_onnx(model), None)
    images = np.random.default_rng(5).integers(-128, 128, (4, 4, 6, 5)).astype(np.int8)
    again = check(network, images)
    assert [dtype for _, _, dtype in (*again.inputs, *again.outputs)] == ["int8", "int8"]


def test_below_16_bits_only_the_results_are_more_exact(layers):
    """What is not rounded in the file is kept in 32 bits; all integers before are the same."""
    graph, calibration, images = layers
    network = apply_calibration(graph, calibration)
    again = returned(network, opset=13)
    before, after = (pipeline.integerize(g.module) for g in (network, again))
    (expected,), (found,) = simulate(before, images[:4]), simulate(after, images[:4])
    step = np.abs(expected).max() / 2**13
    np.testing.assert_allclose(found, expected, atol=float(step), rtol=0)
