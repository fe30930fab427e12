import pytest
import tvm
from tvm import relax

from tests.passes.graphs import FixScales, calls, const, graph, normal
from tvmquant.errors import QuantizationError
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


def widths(module):
    """Return {id: (bits, group)} of every fake_quant."""
    attrs = [qop.attributes(c) for c in calls(module, qop.FAKE_QUANT)]
    return {a["id"]: (a["bits"], a.get("w_group", 0)) for a in attrs}


def test_weights_and_activations():
    after = AssignBitWidths({"a": (4, 32), "b": (4, 0)}, {"relu": 4})(annotated())
    relax.analysis.well_formed(after)
    assert widths(after) == {
        "x0": (8, 0), "a.weight": (4, 32), "relu": (4, 0), "b.weight": (4, 0), "b": (16, 0),
    }  # fmt: skip


def test_nothing_to_change():
    tvm.ir.assert_structural_equal(AssignBitWidths({"a": (8, 0)}, {})(annotated()), annotated())


def test_twice_is_once():
    assign = AssignBitWidths({"a": (4, 32)}, {"relu": 4})
    tvm.ir.assert_structural_equal(assign(assign(annotated())), assign(annotated()))


def test_a_scale_of_the_model_fixes_the_width():
    ranges = dict.fromkeys(("x0", "relu", "b"), (-1.0, 1.0))
    fixed = FixScales(ApplyCalibration(ranges)(annotated())).rewrite()
    with pytest.raises(QuantizationError, match=r"'relu' has a scale for 8 bits.* cannot have 4"):
        AssignBitWidths({}, {"relu": 4})(fixed)
