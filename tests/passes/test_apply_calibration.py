import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal
from tvmquant.errors import QuantizationError
from tvmquant.formats import Uniform
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.assign_bit_widths import AssignBitWidths

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
    """Return {id: (scale, zero_point, qmin, qmax)} of every fake_quant of an activation."""
    found = {}
    for call in calls(module, qop.FAKE_QUANT):
        attrs = qop.attributes(call)
        if attrs["role"] == "weight":
            assert attrs["calibrated"] == 0
            continue
        assert attrs["calibrated"] == 1
        scale, zero_point, *_ = (qop.constant_array(a) for a in call.args[1:])
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
        ("asymmetric", 6, {"x0": (2 / 255, 128, 0, 255), "relu": (25.5 / 63, 0, 0, 63)}),
        ("symmetric", 2, {"x0": (1 / 127, 128, 1, 255), "relu": (25.5, 2, 1, 3)}),
    ],
)
def test_activations(scheme, bits, expected):
    held = {"relu": Uniform(bits, signed=False)}
    found = filled(ApplyCalibration(RANGES)(annotated(scheme, activations=held)))
    for name, (scale, *integers) in expected.items():
        assert found[name][0] == pytest.approx([scale])
        assert found[name][1:] == tuple(integers)


def test_outputs_are_signed_16_bit_integers_without_zero_point():
    found = filled(ApplyCalibration(RANGES)(annotated()))["b"]
    assert (found[0][0], *found[1:]) == (1.0, 0, -32767, 32767)


def test_exactly():
    def quantized(name, x, scale, zero_point, **attrs):
        constants = [np.float32([scale]), np.int32([zero_point])]
        return qop.emit(qop.FAKE_QUANT, [x, *map(qop.constant, constants)], {"id": name} | attrs)

    unset = {"role": "activation", "format": "uint8", "scheme": "auto", "group": "", "axis": -1,
             "least": 0.0, "greatest": 0.0, "range_of": "", "nonzero": 0}  # fmt: skip
    before = lambda emit, x: emit(quantized("x", x, 0, 0, **unset, calibrated=0))  # noqa: E731
    expected = lambda emit, x: emit(  # noqa: E731
        quantized("x", x, 0.5, 0, **unset, calibrated=1, qmin=0, qmax=255)
    )
    after = ApplyCalibration({"x": (0.0, 127.5)})(graph(before, (3,)))
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, graph(expected, (3,)))


@pytest.mark.parametrize(
    ("bounds", "limits"),
    [((0.1, 32.767), (1, 32767)), ((-32.767, -1e-9), (-32767, -1)), ((-1.0, 1.0), (-32767, 32767))],
)
def test_a_divisor_of_one_sign_never_becomes_0(bounds, limits):
    def body(emit, x):
        return emit(op.divide(network(emit, x), emit(op.abs(network(emit, x)), "divisor")))

    module = AnnotateQuantization()(graph(body, (2, 4, 6, 6)))
    names = [qop.attributes(c)["id"] for c in calls(module, qop.FAKE_QUANT)]
    ranges = dict.fromkeys(names, (-1.0, 1.0)) | {"divisor": bounds}
    found = filled(ApplyCalibration(ranges)(module))
    assert found["divisor"][2:] == limits


def test_what_is_calibrated_is_left_alone():
    once = ApplyCalibration(RANGES)(annotated())
    again = ApplyCalibration({})(once)
    tvm.ir.assert_structural_equal(again, once)


def joined(scales, reader):
    """Return the quantizers of a network whose concat joins ranges of two sizes."""

    def body(emit, x):
        a, b = (emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1))), name) for name in "ab")
        return emit(reader(emit, emit(op.concat([a, b], 1))), "reader")

    ranges = {"x0": (-1.0, 1.0), "reader": (-1.0, 1.0), **scales}
    return ApplyCalibration(ranges)(AnnotateQuantization()(graph(body, (2, 4, 6, 6))))


def convolved(_emit, x):
    return op.nn.conv2d(x, const(JOINED_WEIGHT))


JOINED_WEIGHT = normal(5, 8, 1, 1)


def test_inputs_of_a_concat_share_a_zero_point_and_keep_their_scales():
    found = filled(joined({"a": (0.0, 10.0), "b": (-0.1, 0.1)}, convolved))
    assert found["a"][1] == found["b"][1]
    assert found["b"][0] < 0.02 * found["a"][0]
    for name, low, high in (("a", 0.0, 10.0), ("b", -0.1, 0.1)):
        scale, zero = found[name][0][0], found[name][1]
        assert -zero * scale <= low + 1e-6
        assert (255 - zero) * scale >= high - 1e-6


@pytest.mark.parametrize(("high", "shared"), [(5.0, True), (0.5, False)])
def test_a_table_reads_one_scale_unless_ranges_are_unlike(high, shared):
    table = lambda _emit, x: op.sigmoid(x)  # noqa: E731
    found = filled(joined({"a": (0.0, 10.0), "b": (0.0, high)}, table))
    assert (found["a"] == found["b"]) == shared


def test_the_value_of_a_pad_extends_the_range():
    def body(emit, x):
        y = emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1))), "a")
        padded = emit(op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=114.0))
        return emit(op.nn.conv2d(padded, const(normal(2, 4, 1, 1))), "b")

    ranges = {"x0": (-1.0, 1.0), "a": (-2.0, 2.0), "b": (-1.0, 1.0)}
    found = filled(ApplyCalibration(ranges)(AnnotateQuantization()(graph(body, (2, 4, 6, 6)))))
    assert found["a"][0] == pytest.approx(116 / 255)


def test_a_missing_range_is_named():
    with pytest.raises(QuantizationError, match="'relu'"):
        ApplyCalibration({"x0": (0.0, 1.0)})(annotated())
