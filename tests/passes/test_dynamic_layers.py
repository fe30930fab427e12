import numpy as np
import pytest
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal, op_names
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.fix_scales import FixScales
from tvmquant.passes.insert_requantize import InsertRequantize

op = relax.op
SHAPE = (2, 4, 6, 6)


def annotated(body, *, dynamic=True, calibrates=False, shape=SHAPE):
    return AnnotateQuantization(dynamic=dynamic, calibrates=calibrates)(graph(body, shape))


def conv(emit, x, name="conv", outputs=4):
    weight = const(normal(outputs, int(x.ty.shape.values[1]), 3, 3))
    return emit(op.nn.conv2d(x, weight, padding=1), name)


def ranged(emit, x):
    return emit(qop.emit(dyn.DYNAMIC_QUANT, [x], {"id": "x", "fixed": 1}))


def known(emit, x, name="input"):
    """Round to a scale of the model's."""
    attrs = {
        "id": name, "role": "activation", "format": "uint8", "scheme": "asymmetric", "group": "",
        "axis": -1, "qmin": 0, "qmax": 255, "calibrated": 1, "fixed": 1, "shares": "zero_point",
        "least": 0.0, "greatest": 0.0, "range_of": "", "nonzero": 0,
    }  # fmt: skip
    numbers = [qop.constant(np.float32([0.1])), qop.constant(np.int32([100]))]
    return emit(qop.emit(qop.FAKE_QUANT, [x, *numbers], attrs))


def test_a_layer_that_would_stay_float_reads_its_input_by_its_range():
    module = annotated(conv)
    assert op_names(module) == ["dynamic_quant", "fake_quant", "nn.conv2d"]
    (made,) = calls(module, dyn.DYNAMIC_QUANT)
    assert qop.attributes(made) == {"id": "conv.input", "fixed": 0}
    assert op_names(annotated(conv, dynamic=False)) == ["nn.conv2d"]


def test_a_layer_whose_input_has_a_scale_keeps_it():
    module = annotated(lambda emit, x: conv(emit, known(emit, x)))
    assert "dynamic_quant" not in op_names(module)


def test_layers_that_read_one_tensor_share_its_integers():
    """Two paddings are two frames around them."""

    def body(emit, x):
        weight = const(normal(4, 4, 1, 1))
        plain = emit(op.nn.conv2d(x, weight), "plain")
        return emit(op.add(emit(op.add(conv(emit, x, "a"), conv(emit, x, "b"))), plain))

    module = annotated(body)
    assert op_names(module).count("dynamic_quant") == 1
    integer = op_names(InsertRequantize()(FixScales()(module)))
    assert integer.count("dynamic_range") == 1
    assert integer.count("dynamic_quantize") == 2


@pytest.mark.parametrize("kind", ["activations", "batch of matrices", "added"])
def test_what_is_no_layer_stays_float(kind):
    def body(emit, x):
        if kind == "activations":
            return emit(op.matmul(x, x))
        if kind == "added":
            return emit(op.add(x, const(normal(1, 4, 1, 1))))
        return emit(op.matmul(x, const(normal(4, 6, 6))))

    assert "dynamic_quant" not in op_names(annotated(body))


def test_a_range_that_the_model_asks_for_is_found_unasked():
    module = annotated(lambda emit, x: conv(emit, ranged(emit, x)), dynamic=False)
    assert op_names(module) == ["dynamic_quant", "fake_quant", "nn.conv2d"]


def test_a_reshape_keeps_the_range():
    def body(emit, x):
        return emit(op.matmul(emit(op.reshape(ranged(emit, x), (8, 36))), const(normal(36, 3))))

    integer = InsertRequantize()(FixScales()(annotated(body, dynamic=False)))
    assert op_names(integer) == [
        "dynamic_range", "reshape", "dynamic_quantize", "qdense", "dynamic_dequantize",
    ]  # fmt: skip
    assert calls(integer, dyn.DYNAMIC_RANGE)[0].args[0].same_as(integer["main"].params[0])


def test_a_float_reader_gets_the_rounded_numbers():
    def body(emit, x):
        return emit(op.nn.softmax(ranged(emit, x)))

    integer = InsertRequantize()(annotated(body, dynamic=False))
    expected = ["dynamic_range", "dynamic_quantize", "dynamic_dequantize", "nn.softmax"]
    assert op_names(integer) == expected


def test_calibration_begins_behind_what_finishes_a_dynamic_layer():
    """Its bias and clip are a part of its kernel; what is rounded is their result."""

    def body(emit, x):
        y = conv(emit, ranged(emit, x))
        y = emit(op.nn.relu(emit(op.add(y, const(normal(1, 4, 1, 1))), "bias")), "relu")
        return conv(emit, y, "next")

    module = annotated(body, dynamic=False, calibrates=True)
    names = {
        qop.attributes(value)["id"]
        for _, value in bindings_of(module["main"])
        if qop.is_call(value, qop.FAKE_QUANT)
    }
    assert names == {"conv.weight", "relu", "next.weight", "next"}
