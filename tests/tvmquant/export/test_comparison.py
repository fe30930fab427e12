"""Exported networks round as the library does: at every place, at every width and opset."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tvmquant.export.graphs import checked, choices_of, compared
from tests.tvmquant.random_graphs import LENGTHS, RandomGraph
from tvmquant.errors import TVMQuantError
from tvmquant.frontend import load_onnx
from tvmquant.quantization import apply_calibration, calibrate

# Of tensors whose multipliers are rounded too, more differ: those of slopes, and of narrower forms
# of what is kept in 16 bits.
APPROXIMATE = 0.1
FEW = 4
# Of 16 bits, weights of 11 bits leave so many steps open.
RESIZES, COARSEST_RESIZE = ("Resize", "Upsample"), 32


def check(found, most_unequal=1e-3):
    """No integer is off by more than a step, and hardly any by one."""
    rounding = found.rounding
    assert rounding.largest <= 1
    assert rounding.unequal <= max(most_unequal * rounding.count, FEW)


@pytest.mark.parametrize("choice", ["w8a8", "w4a4", "w4a8g32", "w6a6", "w3a5"])
def test_layers_of_every_operation_and_width(layers, choice):
    graph, calibration, images = layers
    network = apply_calibration(graph, calibration, choices=choices_of(graph, choice))
    for opset in (13, 21):
        found = compared(checked(network, opset=opset), images[:2])
        assert found.runtime.startswith("ONNX Runtime")
        check(found)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_every_operator_that_becomes_a_kernel(mixture, scheme):
    graph, _, images = mixture
    calibration = calibrate(graph, images, batch_size=len(images), activation_scheme=scheme)
    network = apply_calibration(graph, calibration, activation_scheme=scheme)
    found = compared(checked(network), images[:2])
    check(found)
    (output,) = found.outputs.values()
    assert output.sqnr_db > 40


def test_of_equal_integers_nothing_is_left_to_say(layers):
    graph, calibration, images = layers
    found = compared(checked(apply_calibration(graph, calibration)), images[:1])
    (output,) = found.outputs.values()
    assert output.steps.count == 40
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["items"] == 1
    assert told["rounding"]["count"] == sum(s["count"] for s in told["roundings"].values())


GRAPHS = given(
    st.integers(0, 2**32 - 1), st.integers(LENGTHS[0], LENGTHS[-1]), st.integers(13, 25),
    st.sampled_from(["asymmetric", "symmetric", "auto"]), st.booleans(),
)  # fmt: skip


@settings(max_examples=10)
@GRAPHS
def test_random_graphs(seed, length, opset, scheme, packs):
    check_random_graph(seed, length, opset, scheme, packs)


@pytest.mark.slow
@settings(max_examples=50)
@GRAPHS
def test_many_random_graphs(seed, length, opset, scheme, packs):
    check_random_graph(seed, length, opset, scheme, packs)


def check_random_graph(seed, length, opset, scheme, packs):
    drawn = RandomGraph(seed, length)
    try:
        graph = load_onnx(drawn.model)
        calibration = calibrate(graph, drawn.data(), activation_scheme=scheme)
        choices = drawn.choices(graph)
        network = apply_calibration(graph, calibration, choices=choices, activation_scheme=scheme)
    except TVMQuantError:
        return
    found = compared(checked(network, opset=opset, packs=packs), drawn.data()[:2])
    for name, steps in found.roundings.items():
        if name.startswith(RESIZES):  # half up, of neighbours with weights in fixed point
            assert steps.largest <= COARSEST_RESIZE
        else:
            assert steps.largest <= 1
            assert steps.unequal <= max(APPROXIMATE * steps.count, FEW)


def test_without_onnx_runtime_the_reference_runs(layers, monkeypatch):
    monkeypatch.setattr("tvmquant.export.runtime.has_onnxruntime", lambda: False)
    graph, calibration, images = layers
    found = compared(checked(apply_calibration(graph, calibration)), images[:1])
    assert found.runtime.startswith("the reference of onnx")
    check(found)
