import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal
from tvmquant import formats
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.assign_bit_widths import AssignBitWidths
from tvmquant.passes.split_residual_width import SplitResidualWidth

op = relax.op
UINT4, UINT8 = map(formats.parse, ("uint4", "uint8"))


def network(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1))), "a")), "relu")
    moved = emit(op.nn.max_pool2d(y, pool_size=(3, 3), padding=(1, 1, 1, 1)))
    z = emit(op.nn.conv2d(moved, const(normal(4, 4, 1, 1))), "b")
    return emit(op.add(z, y), "sum")


def annotated(activation=UINT4, body=network):
    module = AnnotateQuantization()(graph(body, (2, 4, 6, 6)))
    return AssignBitWidths({}, {"relu": activation})(module)


def quants(module):
    """Return {id: (format, id of the fake_quant that it reads)}."""
    ids = {var: qop.attributes(v)["id"] for var, v in bindings_of(module["main"])
           if qop.is_call(v, qop.FAKE_QUANT)}  # fmt: skip
    return {
        attrs["id"]: (attrs["format"], ids.get(call.args[0]))
        for call in calls(module, qop.FAKE_QUANT)
        for attrs in [qop.attributes(call)]
    }


def reads(module, name):
    """Return the ids of the fake_quants that an operator reads."""
    values = dict(bindings_of(module["main"]))
    (call,) = [v for v in values.values() if isinstance(v, relax.Call) and span_name(v) == name
               and not qop.is_call(v, qop.FAKE_QUANT)]  # fmt: skip
    return [qop.attributes(values[a])["id"] for a in call.args
            if a in values and qop.is_call(values[a], qop.FAKE_QUANT)]  # fmt: skip


def test_a_sum_reads_what_is_wide_and_a_layer_what_is_narrow():
    after = SplitResidualWidth(8)(annotated())
    relax.analysis.well_formed(after)
    found = quants(after)
    assert found["relu.residual"] == ("uint8", None)
    assert found["relu"] == ("uint4", "relu.residual")
    assert reads(after, "sum") == ["relu.residual"]
    (pool,) = calls(after, "relax.nn.max_pool2d")
    values = dict(bindings_of(after["main"]))
    assert qop.attributes(values[pool.args[0]])["id"] == "relu"


def test_ranges_are_those_of_the_two_widths():
    split = SplitResidualWidth(6)(annotated())
    ranges = {"x0": (0.0, 1.0), "relu": (0.0, 3.0), "relu.residual": (0.0, 6.3), "sum": (0.0, 9.0)}
    found = {
        qop.attributes(call)["id"]: float(qop.constant_array(call.args[1])[0])
        for call in calls(ApplyCalibration(ranges)(split), qop.FAKE_QUANT)
    }
    assert found["relu"] == pytest.approx(0.2)
    assert found["relu.residual"] == pytest.approx(0.1)


def read_once(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1))), "a")), "relu")
    return emit(op.nn.conv2d(y, const(normal(4, 4, 1, 1))), "b")


def joined(emit, x):
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(4, 4, 1, 1))), "a")), "relu")
    z = emit(op.nn.relu(emit(op.nn.conv2d(y, const(normal(4, 4, 1, 1))), "b")), "relu2")
    both = emit(op.concat([y, z], 1))
    return emit(op.add(emit(op.nn.conv2d(both, const(normal(4, 8, 1, 1))), "c"), y), "sum")


@pytest.mark.parametrize(
    ("activation", "body"), [(UINT8, network), (UINT4, read_once), (UINT4, joined)]
)
def test_what_is_wide_already_or_read_by_layers_only_or_joined_stays(activation, body):
    before = annotated(activation, body)
    tvm.ir.assert_structural_equal(SplitResidualWidth(8)(before), before)


def test_twice_is_once():
    once = SplitResidualWidth(8)(annotated())
    tvm.ir.assert_structural_equal(SplitResidualWidth(8)(once), once)
