"""Integers that a file stores, and the scales that it gives tensors, come in as fake_quants."""

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

import tvmquant
from tests.tvmquant.qdq_models import Qdq
from tests.tvmquant.random_graphs import run_onnxruntime
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.frontend import load_onnx
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.passes.rounded_weights import weight_of as read_weight
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.quantization import apply_calibration
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

FAKE_QUANT = "tvmquant.fake_quant"
IMAGE = {"x": ("N", 3, 5, 4)}
LEVELS = [-8, 7, 1, 2, 3, -4, 5, -6, 1, 2, 3, 4]
CHANNELS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


def weight_of(graph, layer):
    """Return the quantized weight of a layer."""
    return next(
        read_weight(value, qop.attributes(value))
        for _, value in bindings_of(graph.main)
        if qop.is_call(value, qop.FAKE_QUANT) and span_name(value) == layer
    )


def stored(kind):
    """Return integers of shape (4, 3, 1, 1), their zero point and scale."""
    shape = [4, 3, 1, 1]
    if kind == "int4":
        tensor = helper.make_tensor("w", TensorProto.INT4, shape, LEVELS)
        return tensor, helper.make_tensor("z", TensorProto.INT4, [4], [0, 1, -2, 3]), CHANNELS
    if kind == "float8":
        tensor = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, shape, LEVELS)
        return tensor, helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0]), CHANNELS[0]
    levels = np.array(LEVELS).reshape(shape)
    if kind == "uint8":
        return (levels + 100).astype(np.uint8), np.full(4, 100, np.uint8), CHANNELS
    return levels.astype(np.int8), np.int8(3), CHANNELS[0]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "float8"])
def test_weights_behind_dequantize_keep_their_integers(make_model, compare, operators, kind):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "t"], ["bf"]),
        helper.make_node("Conv", ["x", "wf", "bf"], ["y"]),
    ]
    weight, zero_point, scale = stored(kind)
    bias = {"b": np.array([1, 2, -300, 4], np.int32), "t": np.float32(0.01)}
    constants = {"w": weight, "z": zero_point, "s": scale, **bias}
    graph = compare(make_model(nodes, IMAGE, constants=constants, opset=21))
    quantizers = [] if kind == "float8" else [FAKE_QUANT]
    assert operators(graph) == [*quantizers, "nn.conv2d", "add"]
    if quantizers:
        levels = np.array(LEVELS, np.int64).reshape(4, -1)
        zeros = {"int4": [0, 1, -2, 3], "uint8": [0], "int8": [3]}[kind]
        layer = weight_of(graph, "Conv_2")
        expected = (levels - np.array(zeros)[:, None]).reshape(4, 3, 1, 1)
        assert_array_equal(layer.levels(layer.scale), expected)
        assert_array_equal(layer.scale, np.broadcast_to(scale, 4).astype(np.float64))


def test_weights_quantized_in_blocks(make_model, compare, operators):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0, block_size=2),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    weight = np.arange(-10, 10, dtype=np.int8).reshape(4, 5)
    scale = np.linspace(0.1, 1.0, 10, dtype=np.float32).reshape(2, 5)
    model = make_model(nodes, {"x": ("N", 5)}, constants={"w": weight, "s": scale}, opset=21)
    assert operators(compare(model)) == ["matmul"]


def test_weights_rounded_in_the_model_are_stored_integers(make_model, compare, operators):
    """As QuantizeLinear and back; taken apart into arithmetic they are float constants."""
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["c"]),
        helper.make_node("Div", ["v", "s"], ["d"]),
        helper.make_node("Round", ["d"], ["r"]),
        helper.make_node("Clip", ["r", "low", "high"], ["l"]),
        helper.make_node("Mul", ["l", "s"], ["vf"]),
        helper.make_node("Conv", ["c", "vf"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "s": np.float32(0.01),
        "z": np.int8(0),
        "low": np.float32(-127),
        "high": np.float32(127),
    }
    graph = compare(make_model(nodes, IMAGE, constants=constants))
    assert operators(graph) == [FAKE_QUANT, "nn.conv2d", "nn.conv2d"]


def agreement(model, step, *, floats=(), shape=(3, 4, 6, 5), spread=2.0):
    """Import and quantize without data; compare with ONNX Runtime in steps of the output."""
    graph = tvmquant.quantize(load_onnx(model))
    assert {op.op for op in float_audit(graph.module)} == set(floats)
    x = np.random.default_rng(5).normal(0, spread, shape).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (expected,) = session.run(None, {"x": x})
    (found,) = simulate(graph, x)
    assert found.dtype == expected.dtype
    twin = Twin(apply_calibration(load_onnx(model), None).module, mode="exact")
    if not floats:
        assert_array_equal(twin(torch.from_numpy(x)).numpy(), found)
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / step
    assert difference.max() < 1.01
    # at ties float32 errs either way
    assert np.sum(difference > 0.01) <= 1 + 0.002 * difference.size
    return graph


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize(
    "weight",
    [
        {},
        {"axis": 0},
        {"low": -128},
        {"dtype": "uint8", "zero": 128, "low": 0, "high": 255},
        {"dtype": "uint8", "zero": 90, "low": 0, "high": 255},
        {"dtype": "uint8", "zero": 90, "low": 0, "high": 255, "axis": 0},
        {"dtype": "int8", "zero": -40},
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_compute_what_the_file_says(activation, weight, groups):
    g = Qdq(activation, zero=100 if activation == "uint8" else -20)
    w = g.weight((8, 4 // groups, 3, 3), **weight)
    y = g.node("Conv", g.pair("x"), w, g.bias(8), pads=[1, 1, 1, 1], group=groups)
    agreement(g.model(g.pair(g.node("Relu", y), 0.0213)), 0.0213)


@pytest.mark.parametrize(
    "weight", [{"axis": 1}, {"dtype": "uint8", "zero": 77, "low": 0, "high": 255}], ids=str
)
def test_dense_layers_compute_what_the_file_says(weight):
    g = Qdq()
    flat = g.node("Flatten", g.pair("x"))
    y = g.node("Gemm", flat, g.weight((120, 9), **weight), g.bias(9))
    agreement(g.model(g.pair(y, 0.0831)), 0.0831)


def test_a_sum_whose_layer_has_zero_points_of_weights():
    g = Qdq()
    x = g.pair("x")
    w = g.weight((4, 4, 1, 1), "uint8", 90, low=0, high=255)
    y = g.node("Add", g.node("Conv", x, w), x)
    agreement(g.model(g.pair(y, 0.0513)), 0.0513)


@pytest.mark.parametrize("bits", ["int4", "uint4"])
def test_narrow_weights_keep_all_their_levels(bits):
    low = -8 if bits == "int4" else 0
    levels = np.arange(low, low + 16).reshape(4, 4, 1, 1)
    kind = getattr(TensorProto, bits.upper())
    g = Qdq()
    weight = helper.make_tensor("w", kind, levels.shape, levels.reshape(-1))
    zero = helper.make_tensor("z", kind, [], [0 if bits == "int4" else 3])
    w = g.node("DequantizeLinear", weight, np.float32(0.0503), zero)
    y = g.pair(g.node("Conv", g.pair("x"), w))
    agreement(g.model(y), 0.05)


def test_operators_between_pairs_stay_integers():
    """Pools, a concat of three scales, a residual sum, a table, a mean, and a product."""
    g = Qdq()
    x = g.pair("x")
    pooled = g.pair(g.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    other = g.pair(g.node("Sigmoid", x), 1 / 256, 0)
    joined = g.pair(g.node("Concat", pooled, other, axis=1), 0.0613, 90)
    summed = g.pair(g.node("Add", pooled, x), 0.0917, 110)
    product = g.pair(g.node("Mul", summed, other), 0.0731, 120)
    both = g.pair(g.node("Concat", joined, product, axis=1), 0.0711, 115)
    mean = g.pair(g.node("GlobalAveragePool", both), 0.0307, 120)
    agreement(g.model(mean), 0.0307)


@pytest.mark.parametrize("activation", ["uint16", "int16"])
def test_activations_of_16_bits(activation):
    """Layers, dense ones too, sums, clips and movers compute in integers; a mean stays float."""
    g = Qdq(activation, 31000 if activation == "uint16" else -300, 0.0002)
    x = g.pair("x")
    first = g.node("Conv", x, g.weight((8, 4, 3, 3), axis=0), g.bias(8), pads=[1, 1, 1, 1])
    second = g.node("Conv", g.pair(g.node("Relu", first)), g.weight((4, 2, 1, 1)), group=4)
    total = g.pair(g.node("Add", g.pair(second), x), 0.00031)
    moved = g.node("Reshape", total, np.array([0, 120]))
    y = g.node("Gemm", g.pair(g.node("Relu", moved), 0.00031), g.weight((120, 7)))
    agreement(g.model(g.pair(y, 0.0004)), 0.0004, spread=1.0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_linear_resize_rounds_once(dtype, factor):
    wide = dtype == "uint16"
    g = Qdq(dtype, 31000 if wide else 100, 0.002 if wide else 0.05)
    scales = np.array([1, 1, factor, factor], np.float32)
    y = g.node("Resize", g.pair("x"), "", scales, mode="linear")
    step = 0.0031 if wide else 0.0313
    agreement(g.model(g.pair(y, step)), step, spread=1.0)


@pytest.mark.parametrize("axis", [None, 1])
def test_a_dense_layer_of_16_bits_has_zero_points_of_weights(axis):
    g = Qdq("uint16", 31000, 0.0002)
    flat = g.node("Flatten", g.pair("x"))
    w = g.weight((120, 7), "uint8", 90, axis=axis, low=0, high=255)
    agreement(g.model(g.pair(g.node("Gemm", flat, w), 0.0004)), 0.0004, spread=1.0)


def test_constants_of_one_number_beside_16_bits():
    g = Qdq("int16", -300, 0.0002)
    y = g.node("Add", g.pair("x"), np.float32(0.3))
    y = g.node("Mul", g.pair(y, 0.0003), np.float32(-0.7))
    agreement(g.model(g.pair(y, 0.00017)), 0.00017, spread=1.0)


def test_a_tensor_taken_from_constants_that_vary():
    g = Qdq()
    constants = np.array([0.3, -0.2, 1.7, 0.0], np.float32).reshape(4, 1, 1)
    y = g.node("Sub", constants, g.pair("x"))
    agreement(g.model(g.pair(y, 0.0613)), 0.0613)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("batches", [(), (1,), (4,)], ids=str)
def test_products_with_matrices_of_channels(left, batches):
    g = Qdq()
    shape = (*batches, 7, 6) if left else (*batches, 5, 7)
    w = g.weight(shape, "int8", -3, axis=-2 if left and len(shape) == 2 else None)
    operands = (w, g.pair("x")) if left else (g.pair("x"), w)
    agreement(g.model(g.pair(g.node("MatMul", *operands), 0.0613)), 0.0613)


def test_results_are_rounded_before_they_are_moved():
    g = Qdq()
    y = g.node("Conv", g.pair("x"), g.weight((8, 4, 3, 3), axis=0), g.bias(8))
    y = g.node("Reshape", g.node("MaxPool", y, kernel_shape=[2, 2]), np.array([0, -1]))
    agreement(g.model(g.pair(g.node("Relu", y), 0.0313)), 0.0313)


def test_a_choice_between_two_tensors_rounds_once():
    g = Qdq()
    mask = np.random.default_rng(4).random((4, 6, 5)) < 0.5
    y = g.node("Where", mask, g.pair("x"), g.pair(g.node("Sigmoid", g.pair("x")), 1 / 256, 0))
    agreement(g.model(g.pair(y, 0.0413)), 0.0413)


def test_a_constant_beyond_the_scale_of_what_it_pads():
    g = Qdq()
    y = g.node("Pad", g.pair("x"), np.array([0, 0, 1, 0, 0, 0, 0, 1]), np.float32(11.3))
    agreement(g.model(g.pair(y, 0.0713, 70)), 0.0713)


def test_integers_are_padded_with_integers():
    g = Qdq()
    x = g.quantized("x")
    q = g.node("Pad", x, np.array([0, 0, 1, 0, 0, 0, 0, 1]), np.uint8(103))
    y = g.node("DequantizeLinear", q, np.float32(g.scale), np.uint8(g.zero))
    y = g.node("Conv", y, g.weight((8, 4, 3, 3), axis=0), g.bias(8))
    agreement(g.model(g.pair(y, 0.0313)), 0.0313)


def test_a_mean_of_16_bits_stays_float():
    g = Qdq("int16", 5, 0.0002)
    y = g.pair(g.node("GlobalAveragePool", g.pair("x")))
    agreement(g.model(y), 0.0002, floats={"mean"}, spread=1.0)


def test_ties_go_to_even_where_scales_are_powers_of_two():
    """Then float32 is exact, and every integer is the file's."""
    g = Qdq(scale=2.0**-5)
    x = g.pair("x")
    w = g.node("DequantizeLinear", np.arange(-16, 16, dtype=np.int8).reshape(8, 4, 1, 1),
               np.float32(2.0**-6))  # fmt: skip
    y = g.pair(g.node("Conv", x, w), 2.0**-4)
    y = g.pair(g.node("AveragePool", y, kernel_shape=[2, 2]), 2.0**-4)
    y = g.pair(g.node("Add", y, y), 2.0**-2)
    model = g.model(y)
    graph = tvmquant.quantize(load_onnx(model), strict=True)
    x = np.random.default_rng(2).normal(0, 2, (16, 4, 6, 5)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    (found,) = simulate(graph, x)
    assert_array_equal(found, expected)
    twin = Twin(apply_calibration(load_onnx(model), None).module, mode="exact")
    assert_array_equal(twin(torch.from_numpy(x)).numpy(), expected)


def test_one_quantizer_for_equal_pairs_of_one_tensor():
    g = Qdq()
    y = g.node("Conv", g.pair("x"), g.weight((4, 4, 1, 1)))
    first, second = g.pair(y, 0.0313), g.pair(y, 0.0313)
    model = g.model(g.pair(g.node("Add", first, second), 0.0611))
    graph = agreement(model, 0.0611)
    contractions = [v for _, v in bindings_of(graph.main) if qop.is_call(v, qop.QCONV2D)]
    assert len(contractions) == 1


def test_quantizers_one_after_the_other():
    """Rounded twice, and read with another scale than written: as the file says."""
    g = Qdq()
    twice = g.pair(g.pair("x", 0.0213, 128), 0.0713, 90)
    q = g.quantized(twice, 0.0519, 100)
    y = g.node("DequantizeLinear", q, np.float32(0.08), np.uint8(60))
    agreement(g.model(y), 0.08)


def test_integers_at_the_borders():
    """An input of int8 and an output of uint8, moved as integers in between."""
    g = Qdq("int8", 3)
    x = g.node("DequantizeLinear", "x", np.float32(0.05), np.int8(3))
    y = g.node("Conv", x, g.weight((4, 4, 1, 1)))
    q = g.quantized(y, 0.0411, 120, "uint8")
    y = g.node("Transpose", q, perm=[0, 2, 3, 1])
    model = g.model(y, element=TensorProto.INT8, output_element=TensorProto.UINT8)
    graph = tvmquant.quantize(load_onnx(model), strict=True)
    x = np.random.default_rng(0).integers(-128, 128, (2, 4, 6, 5)).astype(np.int8)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    (found,) = simulate(graph, x)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize("ending", ["layer", "softmax", "table"])
def test_what_the_file_leaves_in_float_is_exact(ending):
    """Without data a result that has no scale is kept as the sums that make it."""
    g = Qdq()
    x = g.pair("x")
    if ending == "table":
        y = g.node("Sigmoid", x)
    else:
        y = g.node("Conv", x, g.weight((5, 4, 3, 3), axis=0), g.bias(5))
        y = g.node("Softmax", y, axis=1) if ending == "softmax" else y
    floats = {"softmax"} if ending == "softmax" else set()
    agreement(g.model(y), 1e-4, floats=floats)


def test_a_layer_without_scales_stays_float():
    g = Qdq()
    conv = np.random.default_rng(0).normal(size=(3, 4, 1, 1)).astype(np.float32)
    y = g.node("Conv", g.pair("x"), conv)
    agreement(g.model(y), 1e-4, floats={"conv2d"})


def test_a_function_of_sums_says_that_they_have_no_scale():
    g = Qdq()
    y = g.node("Conv", g.pair("x"), g.weight((4, 4, 1, 1)))
    graph = tvmquant.quantize(load_onnx(g.model(g.node("GlobalAveragePool", y))))
    (entry,) = float_audit(graph.module)
    assert "has no scale in the model; calibrate it with data" in str(entry)


def test_calibration_gives_scales_to_what_has_none():
    g = Qdq()
    y = g.node("Conv", g.pair("x"), g.weight((4, 4, 1, 1)))
    conv = np.random.default_rng(0).normal(size=(3, 4, 1, 1)).astype(np.float32)
    graph = load_onnx(g.model(g.node("Conv", g.node("Relu", y), conv)))
    data = np.random.default_rng(1).normal(size=(8, 4, 6, 5)).astype(np.float32)
    quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, data), strict=True)
    weights = [v.args[1] for _, v in bindings_of(quantized.main) if qop.is_call(v, qop.QCONV2D)]
    imported = weight_of(graph, "n3")
    assert_array_equal(
        qop.constant_array(weights[0]).transpose(0, 3, 1, 2), imported.levels(imported.scale)
    )


def test_a_float_model_needs_data(make_model):
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(QuantizationError, match="brings no scales for its activations; calibrate"):
        tvmquant.quantize(load_onnx(make_model([node], IMAGE)))


def test_a_given_weight_has_no_other_choice():
    g = Qdq()
    y = g.pair(g.node("Conv", g.pair("x"), g.weight((4, 4, 1, 1))))
    graph = load_onnx(g.model(y))
    with pytest.raises(
        QuantizationError, match=r"as it is in the model \(of a quantized model, --requantize"
    ):
        tvmquant.quantize(graph, choices={"n3": BitChoice.parse("w4a8")})


@pytest.mark.parametrize("multiples", [True, False])
def test_blocks_are_groups_where_their_scales_are_multiples(multiples):
    """Else their layer stays float."""
    g = Qdq()
    rng = np.random.default_rng(3)
    levels = helper.make_tensor("w", TensorProto.INT4, (120, 8), rng.integers(-7, 8, 960))
    factors = rng.integers(1, 17, (30, 8)).astype(np.float32)
    factors[0] = 16  # the greatest of each channel
    scale = np.float32(0.001) * (factors if multiples else rng.uniform(1, 16, (30, 8)))
    scale = np.repeat(scale, 4, axis=0)[::32].astype(np.float32)
    w = g.node("DequantizeLinear", levels, scale[:4], axis=0, block_size=32)
    y = g.node("Gemm", g.node("Flatten", g.pair("x")), w)
    floats = set() if multiples else {"matmul"}
    agreement(g.model(g.pair(y, 0.0831)), 0.0831, floats=floats)


@pytest.mark.parametrize(("dtype", "limits"), [("uint8", (3, 18)), ("int8", (-7, 90))])
def test_integers_that_are_clipped_are_those_of_fewer_levels(dtype, limits):
    g = Qdq(dtype, zero=7 if dtype == "uint8" else -3)
    scale, zero = np.float32(0.11), np.array(9 if dtype == "uint8" else 1, dtype)
    ends = [np.array(end, dtype) for end in limits]
    q = g.node("QuantizeLinear", g.node("Conv", g.pair("x"), g.weight((6, 4, 1, 1))), scale, zero)
    y = g.node("DequantizeLinear", g.node("Clip", q, *ends), scale, zero)
    model = g.model(y)
    agreement(model, 0.11)
    quantizers = [
        v for _, v in bindings_of(load_onnx(model).main) if qop.is_call(v, qop.FAKE_QUANT)
    ]
    kept = [q for q in map(qop.attributes, quantizers) if q["role"] == qop.ACTIVATION]
    levels = {(q["qmin"], q["qmax"], q["format"]) for q in kept}
    expected = (3, 18, "uint5") if dtype == "uint8" else (121, 218, "uint8")
    assert expected in levels


def test_integers_that_are_clipped_after_they_were_moved():
    g = Qdq()
    scale, zero = np.float32(0.05), np.uint8(100)
    q = g.node("QuantizeLinear", g.node("Conv", g.pair("x"), g.weight((6, 4, 1, 1))), scale, zero)
    moved = g.node("MaxPool", q, kernel_shape=[2, 2])
    clipped = g.node("Clip", moved, np.uint8(90), np.uint8(140))
    agreement(g.model(g.node("DequantizeLinear", clipped, scale, zero)), 0.05)


def test_16_bits_end_where_a_clip_in_front_ends_them():
    """That of what a float operator gives is no operator of its own."""
    g = Qdq()
    scale = np.float32(0.0003)
    ends = [np.float32(step * scale) for step in (-32767, 2000)]
    soft = g.node("Softmax", g.pair("x"), axis=1)
    y = g.pair(g.node("Clip", soft, *ends), scale, 0, dtype="int16")
    agreement(g.model(y), 0.0003, floats={"softmax"})


def test_integers_of_both_signs_go_in_and_out():
    g = Qdq("int8", -3)
    real = g.node("DequantizeLinear", "x", np.float32(0.05), np.int8(-3))
    y = g.quantized(g.node("Conv", real, g.weight((6, 4, 3, 3)), g.bias(6)))
    model = g.model(y, element=TensorProto.INT8)
    x = np.random.default_rng(5).integers(-128, 128, (4, 4, 6, 5)).astype(np.int8)
    (found,) = simulate(tvmquant.quantize(load_onnx(model)), x)
    (expected,) = run_onnxruntime(model, x)
    assert found.dtype == np.int8
    assert_array_equal(found, expected)


@pytest.mark.parametrize("groups", [4, 1])
def test_scales_for_each_channel_of_an_activation(groups):
    """As NNCF gives them to depthwise layers; other weights of a file cannot take them in."""
    g = Qdq()
    scales = np.array([0.05, 0.03, 0.07, 0.011], np.float32)
    zeros = np.full(4, 100, np.uint8)
    q = g.node("QuantizeLinear", "x", scales, zeros, axis=1)
    x = g.node("DequantizeLinear", q, scales, zeros, axis=1)
    y = g.node("Conv", x, g.weight((8, 4 // groups, 3, 3), axis=0), g.bias(8), group=groups)
    # an input is divided by the factors before it is quantized, once
    floats = {"divide", *(["conv2d", "add"] if groups == 1 else [])}
    agreement(g.model(g.pair(y, 0.0313)), 0.0313, floats=floats)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("reader", ["affine", "layer"])
def test_a_concat_of_several_zero_points_rounds_nothing(reader, nested):
    """As NNCF leaves it, without a quantizer of its own; a layer behind it stays float."""
    g = Qdq()
    parts = [g.pair("x", 0.0513, 20), g.pair("x", 0.0317, 200), g.pair("x", 0.11, 90)]
    if nested:  # as in a DenseNet
        parts = [g.node("Concat", *parts[:2], axis=1), parts[2]]
    joined = g.node("Concat", *parts, axis=1)
    if reader == "affine":
        rng = np.random.default_rng(0)
        factor, shift = (rng.normal(1, 0.3, (1, 12, 1, 1)).astype(np.float32) for _ in range(2))
        y = g.node("Relu", g.node("Add", g.node("Mul", joined, factor), shift))
    else:
        y = g.node("Conv", joined, g.weight((8, 12, 3, 3), axis=0))
    floats = set() if reader == "affine" else {"conv2d"}
    agreement(g.model(g.pair(y, 0.0271, 60)), 0.0271, floats=floats)
