"""Layers whose input is rounded by its range: library, simulator and exact twin are one."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from tvm import relax

import tvmquant
from tests.passes.graphs import const, graph, normal
from tvmquant.deploy.manifest import describe_choice
from tvmquant.errors import QuantizationError
from tvmquant.graph import Graph
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.quantization import apply_calibration
from tvmquant.twin import Twin

op = relax.op
SHAPE = (2, 6, 9, 8)


def network(body, shape=SHAPE):
    return Graph(graph(body, shape), "L0", "net", ("x0",), ("y",))


def conv(emit, x, outputs, name, size=3, groups=1, **attributes):
    weight = const(normal(outputs, int(x.ty.shape.values[1]) // groups, size, size, scale=0.2))
    y = emit(op.nn.conv2d(x, weight, groups=groups, **attributes), name)
    return emit(op.add(y, const(normal(1, outputs, 1, 1))), f"{name}.bias")


def convolutions(emit, x):
    """Padded on some sides, strided, depthwise, grouped; two that read one tensor."""
    x = emit(op.nn.relu(conv(emit, x, 12, "a", padding=(1, 0, 2, 1))))
    x = emit(op.clip(conv(emit, x, 12, "b", groups=12, padding=1, dilation=2), 0.0, 6.0))
    left = conv(emit, x, 8, "c", size=1, strides=2)
    right = conv(emit, x, 8, "d", groups=4, strides=2, padding=1)
    return emit(op.nn.max_pool2d(emit(op.add(left, right)), (2, 2), (2, 2)))


def transposed(emit, x):
    """Whose weights meet an input at some positions only, and a reader of its sums."""
    weight = const(normal(6, 4, 3, 2))
    y = emit(op.nn.conv2d_transpose(x, weight, strides=(2, 1), padding=(1, 0, 0, 1),
                                    output_padding=(1, 0)), "up")  # fmt: skip
    return conv(emit, emit(op.add(y, const(normal(1, 4, 1, 1)))), 3, "last")


def dense(emit, x):
    """Of rows, and of rank 4; behind a transpose that only moves the range."""
    rows = emit(op.permute_dims(x, [0, 2, 3, 1]))
    rows = emit(op.nn.relu(emit(op.matmul(rows, const(normal(6, 20))), "first")))
    flat = emit(op.reshape(rows, (2, 72, 20)))
    y = emit(op.matmul(flat, const(normal(20, 7))), "second")
    return emit(op.add(y, const(normal(7))))


@pytest.mark.parametrize("body", [convolutions, transposed, dense], ids=lambda f: f.__name__)
def test_a_library_equals_simulator_and_twin(body, tmp_path):
    model, x = network(body), 3 * normal(*SHAPE)
    integer = tvmquant.quantize(model, dynamic=True)
    floats = {found.op for found in float_audit(integer.module)}
    assert floats <= {"add", "max_pool2d", "permute_dims", "reshape"}
    (expected,) = tvmquant.simulate(integer, x)
    manifest = tvmquant.build(integer, out=tmp_path / "library", threads=2)
    assert_array_equal(tvmquant.load(tmp_path / "library")(x), expected)
    annotated = apply_calibration(model, None, dynamic=True)
    exact = Twin(annotated.module, mode="exact")(torch.from_numpy(x))
    assert_array_equal(exact.numpy(), expected)
    rounded = Twin(annotated.module, mode="quantized")(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(expected, rounded, rtol=0, atol=2e-5 * np.abs(rounded).max())
    layers = [layer for layer in manifest.layers if layer.choice]
    assert all(layer.dynamic for layer in layers)
    assert {describe_choice(layer.choice, layer.dynamic) for layer in layers} == {"w8a8 dynamic"}
    steps = {layer.op for layer in manifest.layers if layer.id == layers[0].id}
    assert steps >= {"dynamic_range", "dynamic_quantize", "dynamic_dequantize"}


def test_rounding_at_run_time_is_close_to_the_float_network():
    model, x = network(convolutions), 3 * normal(*SHAPE)
    (found,) = tvmquant.simulate(tvmquant.quantize(model, dynamic=True), x)
    expected = Twin(model.module)(torch.from_numpy(x)).detach().numpy()
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert 10 * np.log10(1 / noise) > 30.0


def test_a_range_follows_its_data():
    """What is a thousand times as large has a thousand times the scale."""
    model, x = network(lambda emit, x: conv(emit, x, 4, "a")), normal(*SHAPE)
    integer = tvmquant.quantize(model, dynamic=True)
    (small,), (large,) = (tvmquant.simulate(integer, factor * x) for factor in (1.0, 1024.0))
    bias = normal(1, 4, 1, 1)
    np.testing.assert_allclose((large - bias) / 1024, small - bias, rtol=0, atol=1e-4)


def test_a_float_network_is_not_quantized_by_ranges_unasked():
    with pytest.raises(QuantizationError, match="dynamic=True"):
        tvmquant.quantize(network(convolutions))


def test_with_a_calibration_only_what_would_stay_float_is_dynamic():
    """A layer behind a float function keeps the calibrated range of what that gives."""

    def body(emit, x):
        y = emit(op.nn.softmax(conv(emit, x, 4, "a"), axis=1))
        return conv(emit, y, 3, "b")

    model, x = network(body), normal(16, *SHAPE[1:])
    calibration = tvmquant.calibrate(model, x[:2])
    plain, dynamic = (
        tvmquant.quantize(model, calibration, dynamic=dynamic) for dynamic in (False, True)
    )
    assert float_audit(plain.module) == float_audit(dynamic.module)
    assert_array_equal(*(tvmquant.simulate(g, x[:2])[0] for g in (plain, dynamic)))


def test_sums_that_may_leave_32_bits_are_refused():
    weight = const(np.ones((70000, 1)))
    model = network(lambda emit, x: emit(op.matmul(x, weight), "wide"), (1, 70000))
    with pytest.raises(QuantizationError, match=r"layer 'wide'.*leave 32 bits"):
        tvmquant.quantize(model, dynamic=True)
