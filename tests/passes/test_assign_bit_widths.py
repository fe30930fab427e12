import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal
from tvmquant import formats
from tvmquant.errors import QuantizationError
from tvmquant.formats import INT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.assign_bit_widths import AssignBitWidths

op = relax.op


def network(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(5, 4, 1, 1))), "a")), "relu")
    return emit(op.nn.conv2d(y, const(normal(2, 5, 1, 1))), "b")


def annotated():
    return AnnotateQuantization()(graph(network, (2, 4, 6, 6)))


INT4, GROUPED, UINT6 = map(formats.parse, ("int4", "int4g32", "uint6"))


def named(module):
    """Return {id: name of the format} of every fake_quant."""
    attrs = [qop.attributes(c) for c in calls(module, qop.FAKE_QUANT)]
    return {a["id"]: a["format"] for a in attrs}


def test_weights_and_activations():
    after = AssignBitWidths({"a": GROUPED, "b": INT4}, {"relu": UINT6})(annotated())
    relax.analysis.well_formed(after)
    assert named(after) == {
        "x0": "uint8", "a.weight": "int4g32", "relu": "uint6", "b.weight": "int4", "b": "int16",
    }  # fmt: skip


def test_a_group_takes_one_format():
    def body(emit, x):
        weight = const(normal(4, 4, 1, 1))
        left, right = (
            emit(op.nn.relu(emit(op.nn.conv2d(x, weight), name)), f"{name}.relu") for name in "ab"
        )
        joined = emit(op.concat([left, right], 1))
        return emit(op.nn.conv2d(joined, const(normal(2, 8, 1, 1))), "c")

    module = AnnotateQuantization()(graph(body, (2, 4, 6, 6)))
    after = named(AssignBitWidths({}, {"a.relu": UINT6})(module))
    assert (after["a.relu"], after["b.relu"], after["x0"]) == ("uint6", "uint6", "uint8")


def test_nothing_to_change():
    tvm.ir.assert_structural_equal(AssignBitWidths({"a": INT8}, {})(annotated()), annotated())


def test_twice_is_once():
    assign = AssignBitWidths({"a": GROUPED}, {"relu": UINT6})
    tvm.ir.assert_structural_equal(assign(assign(annotated())), assign(annotated()))


def test_a_scale_of_the_model_fixes_the_width():
    ranges = dict.fromkeys(("x0", "relu", "b"), (-1.0, 1.0))
    fixed = ApplyCalibration(ranges)(annotated())
    with pytest.raises(QuantizationError, match=r"'relu' .* for uint8 .* cannot become uint6"):
        AssignBitWidths({}, {"relu": UINT6})(fixed)
