"""Models that ask for ranges at run time, as ONNX Runtime's tools make them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import tvmquant
from tvmquant.errors import QuantizationError, UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.quantization import apply_calibration
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

VECTOR = {"x": ("N", 6)}


def run(model, x):
    """Return the outputs of ONNX Runtime without optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options).run(None, {"x": x})


def convolutions():
    """A network of images: padded, strided, depthwise; dense in the end."""
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.standard_normal((12, 3, 3, 3)) / 3,
        "b": rng.standard_normal(12),
        "c": rng.standard_normal((12, 1, 3, 3)) / 3 + 0.5,
        "d": rng.standard_normal((8, 12, 1, 1)) / 3,
        "e": rng.standard_normal((8 * 4 * 4, 10)) / 9,
        "f": rng.standard_normal(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a", "b"], ["t0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["t0"], ["t1"]),
        helper.make_node("Conv", ["t1", "c"], ["t2"], group=12, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["t1", "t2"], ["t3"]),
        helper.make_node("Conv", ["t3", "d"], ["t4"]),
        helper.make_node("Flatten", ["t4"], ["t5"]),
        helper.make_node("MatMul", ["t5", "e"], ["t6"]),
        helper.make_node("Add", ["t6", "f"], ["y"]),
    ]
    return nodes, {"x": ("N", 3, 8, 8)}, constants


def attention():
    """A block of a transformer, on sequences."""
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((16, 16)) / 4 for name in "qkvo"}
    constants |= {"s": np.array(0.25), "b": rng.standard_normal(16), "g": np.ones(16)}
    constants |= {"up": rng.standard_normal((16, 32)) / 4, "down": rng.standard_normal((32, 16))}
    nodes = [helper.make_node("MatMul", ["x", name], [f"x{name}"]) for name in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["xk"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "xt"], ["t0"]),
        helper.make_node("Mul", ["t0", "s"], ["t1"]),
        helper.make_node("Softmax", ["t1"], ["t2"], axis=-1),
        helper.make_node("MatMul", ["t2", "xv"], ["t3"]),
        helper.make_node("MatMul", ["t3", "o"], ["t4"]),
        helper.make_node("Add", ["t4", "x"], ["t5"]),
        helper.make_node("LayerNormalization", ["t5", "g", "b"], ["t6"]),
        helper.make_node("MatMul", ["t6", "up"], ["t7"]),
        helper.make_node("Relu", ["t7"], ["t8"]),
        helper.make_node("MatMul", ["t8", "down"], ["t9"]),
        helper.make_node("Add", ["t9", "t6"], ["y"]),
    ]
    return nodes, {"x": ("N", 5, 16)}, constants


@pytest.fixture(scope="module")
def dynamic_file(make_model, tmp_path_factory):
    """Function that returns the path of a network that ONNX Runtime has quantized."""

    def make(network, weight_type, per_channel=False):
        nodes, inputs, constants = network()
        held = {name: np.float32(array) for name, array in constants.items()}
        folder = tmp_path_factory.mktemp("onnx")
        source, target = str(folder / "float.onnx"), str(folder / "dynamic.onnx")
        onnx.save(make_model(nodes, inputs, constants=held, opset=17), source)
        # without VNNI, ONNX Runtime's sums of products with signed weights of 8 bits saturate
        quantize_dynamic(
            source, target, weight_type=weight_type, per_channel=per_channel,
            reduce_range=weight_type == QuantType.QInt8,
        )  # fmt: skip
        return target

    return make


@pytest.mark.parametrize(
    ("network", "weight_type", "per_channel"),
    [
        (convolutions, QuantType.QUInt8, False),
        (convolutions, QuantType.QInt8, True),
        (attention, QuantType.QUInt8, True),
        (attention, QuantType.QInt8, False),
    ],
)
def test_equal_to_onnx_runtime_up_to_float32(network, weight_type, per_channel, dynamic_file):
    """The sums are the same integers; with zero points of weights, too, no layer stays float."""
    path = dynamic_file(network, weight_type, per_channel)
    graph = load_onnx(path)
    integer = tvmquant.quantize(graph)
    shape = [2, *graph.inputs[0][1][1:]]
    x = np.random.default_rng(5).normal(0, 2, shape).astype(np.float32)
    (expected,), (found,) = run(path, x), simulate(integer, x)
    close = np.abs(found - expected) <= 1e-5 * np.abs(expected).max()
    assert close.mean() >= 0.999
    floats = [op.op for op in float_audit(integer.module)]
    # those of two activations are no layers
    assert "conv2d" not in floats
    assert floats.count("matmul") == (2 if network is attention else 0)
    if network is convolutions:
        annotated = apply_calibration(graph, None)
        exact = Twin(annotated.module, mode="exact")(torch.from_numpy(x))
        assert_array_equal(exact.numpy(), found)


def test_all_that_a_range_gives_may_be_read(make_model):
    """Integers, scale and zero point are computed where something takes them as they are."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Transpose", ["q"], ["t"]),
        helper.make_node("DequantizeLinear", ["t", "s", "z"], ["real"]),
        helper.make_node("Identity", ["s"], ["scale"]),
        helper.make_node("Cast", ["z"], ["zero"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["t"], ["moved"], to=TensorProto.FLOAT),
    ]
    outputs = ("real", "scale", "zero", "moved")
    model = make_model(nodes, {"x": (3, 6)}, outputs=outputs)
    x = np.random.default_rng(5).normal(1, 2, (3, 6)).astype(np.float32)
    found = simulate(tvmquant.quantize(load_onnx(model)), x)
    for ours, theirs in zip(found, run(model, x), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def layer(*parameters):
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("DynamicQuantizeLinear", ["n"], ["r", "u", "v"]),
        helper.make_node("DequantizeLinear", ["q", *parameters], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]


WEIGHT = {"w": np.ones((6, 2), np.float32), "one": np.float32(1.0), "two": np.uint8(2)}


@pytest.mark.parametrize(
    "parameters", [("u", "z"), ("s", "v"), ("s",), ("one", "two"), ("s", "two")]
)
def test_integers_of_other_numbers_are_refused(make_model, parameters):
    model = make_model(layer(*parameters), VECTOR, constants=WEIGHT)
    with pytest.raises(UnsupportedModelError, match="other numbers than the scale and zero point"):
        load_onnx(model)


def test_a_range_goes_over_the_batch_that_the_file_fixes(make_model):
    """Another batch would mix what were samples."""
    model = make_model(layer("s", "z"), {"x": (1, 6)}, constants=WEIGHT)
    assert load_onnx(model).inputs[0][1] == (1, 6)


def test_requantizing_leaves_ranges_out(make_model, operators):
    model = make_model(layer("s", "z"), VECTOR, constants=WEIGHT)
    assert operators(load_onnx(model)) == ["tvmquant.dynamic_quant", "matmul"]
    anew = load_onnx(model, requantize=True)
    assert operators(anew) == ["matmul"]
    with pytest.raises(QuantizationError, match="brings no scales"):
        tvmquant.quantize(anew)
