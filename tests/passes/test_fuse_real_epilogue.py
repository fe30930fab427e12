import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal, op_names
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.fix_scales import FixScales
from tvmquant.passes.fuse_real_epilogue import FuseRealEpilogue
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.simulator import simulate

op = relax.op
SHAPE = (2, 4, 6, 6)
BIAS = normal(1, 4, 1, 1)


def conv(emit, x):
    return emit(op.nn.conv2d(x, const(normal(4, 4, 3, 3)), padding=1), "conv")


def biased(emit, x):
    return emit(op.add(conv(emit, x), const(BIAS)), "bias")


def integer(body):
    annotated = AnnotateQuantization(calibrates=False, dynamic=True)(graph(body, SHAPE))
    return InsertRequantize()(FixScales()(annotated))


FUSED = {
    "bias": biased,
    "constant first": lambda emit, x: emit(op.add(const(BIAS), conv(emit, x))),
    "one number": lambda emit, x: emit(op.add(conv(emit, x), const(0.5))),
    "relu": lambda emit, x: emit(op.nn.relu(biased(emit, x))),
    "clip": lambda emit, x: emit(op.clip(conv(emit, x), -1.0, 6.0)),
    "two clips": lambda emit, x: emit(op.clip(emit(op.nn.relu(biased(emit, x))), -1.0, 6.0)),
}


@pytest.mark.parametrize("body", FUSED.values(), ids=FUSED)
def test_what_a_kernel_can_do_is_fused(body):
    """Without a change of any number, in either layout."""
    module = integer(body)
    fused = FuseRealEpilogue()(module)
    assert op_names(fused) == ["dynamic_range", "dynamic_quantize", "qconv2d", "dynamic_dequantize"]
    tvm.ir.assert_structural_equal(FuseRealEpilogue()(fused), fused)
    relax.analysis.well_formed(fused)
    x = 3 * normal(*SHAPE)
    (expected,) = simulate(module, x)
    for other in (fused, ConvertLayout()(fused), ConvertLayout()(module)):
        np.testing.assert_array_equal(simulate(other, x)[0], expected)


KEPT = {
    "varies by position": lambda emit, x: emit(op.add(conv(emit, x), const(normal(1, 1, 6, 6)))),
    "another tensor": lambda emit, x: emit(op.add(conv(emit, x), x)),
    "twice": lambda emit, x: emit(op.add(biased(emit, x), const(BIAS))),
    "behind a clip": lambda emit, x: emit(op.add(emit(op.nn.relu(conv(emit, x))), const(BIAS))),
    "a function": lambda emit, x: emit(op.tanh(conv(emit, x))),
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_what_it_cannot_stays(body):
    last = op_names(integer(body))[-1]
    assert op_names(FuseRealEpilogue()(integer(body)))[-1] == last


def test_what_something_else_reads_stays():
    def body(emit, x):
        y = conv(emit, x)
        return emit(op.nn.relu(y)), y

    module = integer(body)
    tvm.ir.assert_structural_equal(FuseRealEpilogue()(module), module)


def test_bounds_of_clips_are_those_of_all():
    module = FuseRealEpilogue()(integer(FUSED["two clips"]))
    attrs = qop.attributes(calls(module, dyn.DYNAMIC_DEQUANTIZE)[0])
    assert (attrs["low"], attrs["high"]) == (0.0, 6.0)
