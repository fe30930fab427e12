import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal
from tvmquant.errors import QuantizationError
from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.assign_bit_widths import AssignBitWidths
from tvmquant.quantizer import grouped_weight_scales, weight_scales

op = relax.op
WEIGHT = normal(5, 4, 3, 3)
RANGES = {"x0": (-1.0, 1.0), "relu": (0.0, 25.5), "b": (-32767.0, 10.0)}


def network(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(WEIGHT), padding=1), "a")), "relu")
    return emit(op.nn.conv2d(y, const(normal(2, 5, 1, 1))), "b")


def annotated(scheme="asymmetric", weights=None, activations=None):
    module = AnnotateQuantization(scheme)(graph(network, (2, 4, 6, 6)))
    return AssignBitWidths(weights or {}, activations or {})(module)


def filled(module):
    """Return {id: (scale, zero_point, qmin, qmax)} of every fake_quant."""
    found = {}
    for call in calls(module, qop.FAKE_QUANT):
        attrs = qop.attributes(call)
        assert attrs["calibrated"] == 1
        scale, zero_point = (qop.constant_array(a) for a in call.args[1:])
        assert (scale.dtype, zero_point.dtype) == (np.float32, np.int32)
        found[attrs["id"]] = (scale, int(zero_point[0]), attrs["qmin"], attrs["qmax"])
    return found


@pytest.mark.parametrize(
    ("scheme", "bits", "expected"),
    [
        ("asymmetric", 8, {"x0": (2 / 255, 128, 0, 255), "relu": (0.1, 0, 0, 255)}),
        ("auto", 8, {"x0": (1 / 127, 128, 1, 255), "relu": (0.1, 0, 0, 255)}),
        ("symmetric", 8, {"x0": (1 / 127, 128, 1, 255), "relu": (25.5 / 127, 128, 1, 255)}),
        ("symmetric", 4, {"x0": (1 / 127, 128, 1, 255), "relu": (25.5 / 7, 8, 1, 15)}),
        ("asymmetric", 4, {"x0": (2 / 255, 128, 0, 255), "relu": (1.7, 0, 0, 15)}),
    ],
)
def test_activations(scheme, bits, expected):
    found = filled(ApplyCalibration(RANGES)(annotated(scheme, activations={"relu": bits})))
    for name, (scale, *integers) in expected.items():
        assert found[name][0] == pytest.approx([scale])
        assert found[name][1:] == tuple(integers)


def test_outputs_are_signed_16_bit_integers_without_zero_point():
    found = filled(ApplyCalibration(RANGES)(annotated()))["b"]
    assert (found[0][0], *found[1:]) == (1.0, 0, -32767, 32767)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7)])
def test_weights(method, bits, limit):
    found = filled(ApplyCalibration(RANGES, method)(annotated(weights={"a": (bits, 0)})))[
        "a.weight"
    ]
    np.testing.assert_array_equal(
        found[0], weight_scales(WEIGHT, 0, bits, method).astype(np.float32)
    )
    assert found[1:] == (0, -limit, limit)


def test_weights_in_groups():
    module = ApplyCalibration(RANGES)(annotated(weights={"a": (4, 32)}))
    (call,) = [c for c in calls(module, qop.FAKE_QUANT) if qop.attributes(c).get("w_group")]
    scale, multiplier = grouped_weight_scales(WEIGHT, 32)
    np.testing.assert_array_equal(qop.constant_array(call.args[1]), scale.astype(np.float32))
    np.testing.assert_array_equal(qop.constant_array(call.args[3]), multiplier)
    assert qop.attributes(call)["qmax"] == 7


def test_exactly():
    def quantized(name, x, scale, zero_point, **attrs):
        constants = [np.float32([scale]), np.int32([zero_point])]
        return qop.emit(qop.FAKE_QUANT, [x, *map(qop.constant, constants)], {"id": name} | attrs)

    unset = {"role": "activation", "bits": 8, "scheme": "auto"}
    before = lambda emit, x: emit(quantized("x", x, 0, 0, **unset, calibrated=0))  # noqa: E731
    expected = lambda emit, x: emit(  # noqa: E731
        quantized("x", x, 0.5, 0, **unset, calibrated=1, qmin=0, qmax=255)
    )
    after = ApplyCalibration({"x": (0.0, 127.5)})(graph(before, (3,)))
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, graph(expected, (3,)))


def test_what_is_calibrated_is_left_alone():
    once = ApplyCalibration(RANGES)(annotated())
    again = ApplyCalibration({})(once)
    tvm.ir.assert_structural_equal(again, once)


def test_a_missing_range_is_named():
    with pytest.raises(QuantizationError, match="'relu'"):
        ApplyCalibration({"x0": (0.0, 1.0)})(annotated())
