"""Quantizers of QONNX compute as its documentation says, whatever their width."""

import numpy as np
import pytest
from onnx import helper
from onnx.numpy_helper import to_array
from onnx.reference import ReferenceEvaluator

import tvmquant
from tests.tvmquant.frontend.dialects.qonnx_reference import OPERATORS
from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.simulator import simulate

QONNX = "qonnx.custom_op.general"
DOMAINS = {QONNX: 1, "onnx.brevitas": 1}
SHAPE = (2, 3, 4, 5)
CHANNELS = np.float32([0.05, 0.1, 0.3]).reshape(1, 3, 1, 1)


def equal_to_reference(run, rewritten, model, x):
    """Check that a rewritten model gives the numbers of the reference, and return it."""
    (expected,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"x": x})
    result = rewritten(model)
    assert {node.domain for node in result.graph.node} == {""}
    np.testing.assert_array_equal(run(result, {"x": x})[0], expected)
    return result


def numbers(shape=SHAPE, spread=40.0):
    return (np.random.default_rng(0).standard_normal(shape) * spread).astype(np.float32)


def quantizer(make_model, scale, zero, bits, *, op_type="Quant", domain=QONNX, **attributes):
    """Return a model of one quantizer of its input."""
    constants = {
        "s": np.float32(scale),
        "z": np.float32(zero),
        "b": np.asarray(bits, np.float32),
    }
    node = helper.make_node(
        op_type, ["x", "s", "z", "b"], ["y"], name="quant", domain=domain, **attributes
    )
    return make_model([node], {"x": SHAPE}, constants=constants, opset=21, domains=DOMAINS)


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("bits", [*range(2, 10), 15, 16])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
def test_activations(make_model, rewritten, run, bits, signed, narrow):
    """Numbers beyond the outermost levels are among them."""
    scale = 100 / 2**bits
    model = quantizer(make_model, scale, 0, bits, signed=signed, narrow=narrow)
    result = equal_to_reference(run, rewritten, model, numbers())
    pair = ["QuantizeLinear", "DequantizeLinear"]
    fills_its_type = bits in (4, 8, 16) and not narrow
    assert operators(result) == (pair if fills_its_type else ["Clip", *pair])


@pytest.mark.parametrize("scale", [0.3, CHANNELS])
@pytest.mark.parametrize(
    ("bits", "signed", "zero"), [(3, 0, 2), (8, 0, 128), (5, 1, -6), (4, 1, 20)]
)
def test_zero_points(make_model, rewritten, run, scale, bits, signed, zero):
    """One that is not a level needs a wider type."""
    model = quantizer(make_model, scale, zero, bits, signed=signed)
    equal_to_reference(run, rewritten, model, numbers(spread=10.0))


@pytest.mark.parametrize("bits", [4, 8, 6])
def test_channels(make_model, rewritten, run, bits):
    model = quantizer(make_model, CHANNELS, 0, bits)
    result = equal_to_reference(run, rewritten, model, numbers(spread=5.0))
    assert result.graph.node[-1].attribute[0].i == -3


@pytest.mark.parametrize(("op_type", "domain"), [("IntQuant", QONNX), ("Quant", "onnx.brevitas")])
def test_names_that_the_operator_has_had(make_model, rewritten, run, op_type, domain):
    model = quantizer(make_model, 0.3, 0, 4, op_type=op_type, domain=domain)
    equal_to_reference(run, rewritten, model, numbers())


def layer(make_model, nodes, constants):
    """Return a convolution of weights that some nodes quantize."""
    nodes = [*nodes, helper.make_node("Conv", ["x", "wq"], ["y"], name="conv")]
    weight = np.random.default_rng(1).standard_normal((4, 3, 2, 2)).astype(np.float32)
    return make_model(
        nodes, {"x": SHAPE}, constants={"w": weight, **constants}, opset=21, domains=DOMAINS
    )


@pytest.mark.parametrize("bits", [*range(2, 9), 12, 24, 31])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "CEIL", "DOWN"])
def test_weights(make_model, rewritten, run, bits, signed, mode):
    """They become integers in the file, however they are rounded."""
    scale = np.float32([0.5, 1, 2, 3]).reshape(4, 1, 1, 1) * np.float32(3 / 2**bits)
    node = helper.make_node(
        "Quant", ["w", "s", "z", "b"], ["wq"], domain=QONNX, narrow=signed, signed=signed,
        rounding_mode=mode,
    )  # fmt: skip
    constants = {"s": scale, "z": np.float32(0), "b": np.float32(bits)}
    model = layer(make_model, [node], constants)
    expected = ReferenceEvaluator(model, new_ops=OPERATORS).run(["wq"], {"x": numbers()})[0]
    result = rewritten(model)
    assert operators(result) == ["DequantizeLinear", "Conv"]
    assert result.graph.node[0].attribute[0].i == 0
    result.graph.output[0].name = "wq"
    np.testing.assert_array_equal(run(result, {"x": numbers()})[0], expected)


def test_weights_of_one_bit(make_model, rewritten, run):
    nodes = [helper.make_node("BipolarQuant", ["w", "s"], ["wq"], domain=QONNX)]
    result = rewritten(layer(make_model, nodes, {"s": np.float32([[[[0.25]]]])}))
    assert operators(result) == ["DequantizeLinear", "Conv"]
    levels = {tensor.name: tensor for tensor in result.graph.initializer}[
        result.graph.node[0].input[0]
    ]
    assert set(to_array(levels).astype(int).ravel()) == {-1, 1}


@pytest.mark.parametrize("scale", [0.25, CHANNELS])
@pytest.mark.parametrize("op_type", ["BipolarQuant", "Quant"])
def test_activations_of_one_bit(make_model, rewritten, run, op_type, scale):
    """Zero has the sign +, of both zeros."""
    inputs = ["x", "s"] if op_type == "BipolarQuant" else ["x", "s", "z", "b"]
    node = helper.make_node(op_type, inputs, ["y"], name="sign", domain=QONNX)
    constants = {"s": np.float32(scale), "z": np.float32(0), "b": np.float32(1)}
    model = make_model([node], {"x": SHAPE}, constants=constants, opset=21, domains=DOMAINS)
    data = numbers()
    data[0, 0] = 0.0
    data[0, 1] = -0.0
    result = equal_to_reference(run, rewritten, model, data)
    assert result.graph.node[-1].name == "sign"


def test_quantizers_one_after_the_other(make_model, rewritten, run):
    """What the first makes of a weight is a constant for the second."""
    nodes = [
        helper.make_node("Quant", ["w", "s", "z", "b"], ["v"], domain=QONNX),
        helper.make_node("Quant", ["v", "t", "z", "c"], ["wq"], domain=QONNX),
    ]
    constants = {
        "s": np.float32(0.1),
        "t": np.float32(0.3),
        "z": np.float32(0),
        "b": np.float32(8),
        "c": np.float32(3),
    }
    result = rewritten(layer(make_model, nodes, constants))
    assert operators(result) == ["DequantizeLinear", "Conv"]


REFUSED = {
    "width computed": ({"bits": "x"}, {}, "its bit width 'x' is computed at run time"),
    "width of channels": ({"bits": [4, 4]}, {}, r"bit width 'b' is of shape \(2,\)"),
    "fraction of a bit": ({"bits": 3.5}, {}, "bit width 'b' is 3.5, expected an integer from 1"),
    "too wide": ({"bits": 33}, {}, "bit width 'b' is 33"),
    "no activation": ({"bits": 20}, {}, "its integers range from -524288 .* at most 16 bits"),
    "one level": ({"bits": 1}, {"signed": 0, "narrow": 1}, "its only level is 0"),
    "scale of zero": ({"scale": 0}, {}, "its scale 's' holds 0, expected finite numbers > 0"),
    "scale of two axes": ({"scale": np.ones((1, 3, 4, 1))}, {}, r"its scales have shape \(1, 3, 4"),
    "scale computed": ({"scale": "x"}, {}, "its scale 'x' is computed at run time"),
    "zero point computed": ({"zero": "x"}, {}, "its zero point 'x' is computed at run time"),
    "fraction of a level": ({"zero": 0.5}, {}, "its zero point 'z' is 0.5, expected an integer"),
    "sign and zero": ({"bits": 1, "zero": 1}, {}, "it has 1 bit, a sign and a zero point"),
    "rounding": ({}, {"rounding_mode": "FLOOR"}, "it rounds activations with .*'FLOOR', expected"),
    "no rounding": ({}, {"rounding_mode": "AWAY"}, "rounding_mode='AWAY', expected one of ROUND"),
    "no broadcast": ({"scale": np.ones((3, 1)), "zero": np.ones((2, 1))}, {}, "that broadcast"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exact_form_is_refused_by_name(make_model, case):
    given, attributes, message = REFUSED[case]
    values = {"scale": 0.1, "zero": 0, "bits": 4, **given}
    names = {"scale": "s", "zero": "z", "bits": "b"}
    inputs = [value if isinstance(value, str) else names[key] for key, value in values.items()]
    constants = {
        names[key]: np.float32(value) for key, value in values.items() if not isinstance(value, str)
    }
    node = helper.make_node("Quant", ["x", *inputs], ["y"], name="q", domain=QONNX, **attributes)
    model = make_model([node], {"x": SHAPE}, constants=constants, domains=DOMAINS)
    with pytest.raises(UnsupportedModelError, match=rf"q \({QONNX}.Quant\): .*{message}"):
        load_onnx(model)


def test_weights_that_are_not_finite(make_model):
    node = helper.make_node("Quant", ["w", "s", "z", "b"], ["wq"], name="q", domain=QONNX)
    constants = {"s": np.float32(1), "z": np.float32(0), "b": np.float32(4)}
    constants["w"] = np.full((4, 3, 2, 2), np.nan, np.float32)
    with pytest.raises(UnsupportedModelError, match=r"q .*: constant 'w' holds NaN"):
        load_onnx(layer(make_model, [node], constants))


def test_numbers_with_few_bits_and_a_point_are_refused(make_model):
    node = helper.make_node("FloatQuant", ["x", "s", "b"], ["y"], name="q", domain=QONNX)
    constants = {"s": np.float32(1), "b": np.float32(4)}
    model = make_model([node], {"x": SHAPE}, constants=constants, domains=DOMAINS)
    with pytest.raises(UnsupportedModelError, match="floating-point numbers of few bits"):
        load_onnx(model)


def test_a_network_becomes_integers_of_its_widths(make_model):
    """Scales are such that no sum lies on a tie."""
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.standard_normal((8, 3, 3, 3)) * 0.3).astype(np.float32),
        "ws": rng.uniform(0.05, 0.13, (8, 1, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((5, 8)).astype(np.float32),
        **{f"s{index}": np.float32(s) for index, s in enumerate([0.031, 0.21, 0.0531, 0.3])},
        **{f"b{bits}": np.float32(bits) for bits in (2, 3, 4, 8, 12)},
        "z": np.float32(0),
        "area": np.float32(16),
    }

    def quantized(x, scale, bits, result, **attributes):
        inputs = [x, scale, "z", f"b{bits}"]
        return helper.make_node("Quant", inputs, [result], domain=QONNX, **attributes)

    nodes = [
        quantized("x", "s0", 8, "xq"),
        quantized("w", "ws", 4, "wq", narrow=1),
        helper.make_node("Conv", ["xq", "wq"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        quantized("r", "s1", 3, "rq", signed=0),
        helper.make_node("AveragePool", ["rq"], ["p"], kernel_shape=[4, 4]),
        helper.make_node("Mul", ["p", "area"], ["m"]),
        helper.make_node("Trunc", ["m", "s1", "z", "b12", "b8"], ["t"], domain=QONNX),
        helper.make_node("Flatten", ["t"], ["f"]),
        quantized("v", "s3", 2, "vq", narrow=1),
        helper.make_node("Gemm", ["f", "vq"], ["o"], name="fc", transB=1),
        quantized("o", "s2", 8, "y"),
    ]
    model = make_model(nodes, {"x": ("N", 3, 4, 4)}, constants=constants, domains=DOMAINS)
    graph = load_onnx(model)
    x = rng.standard_normal((16, 3, 4, 4)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"x": x})
    (found,) = simulate(tvmquant.quantize(graph, strict=True), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    widths = [value.attrs["format"] for _, value in bindings_of(graph.main) if is_weight(value)]
    assert widths == ["int4", "int2"]


def test_one_file_of_one_two_four_and_eight_bits(make_model, tmp_path):
    """Each layer computes with its own; the library gives what QONNX defines."""
    rng = np.random.default_rng(0)
    shapes = {"w8": (32, 3, 3, 3), "w1": (40, 32, 3, 3), "w2": (24, 40, 1, 1), "w4": (10, 24)}
    constants = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    scales = {"s8": 0.019, "t1": 0.37, "s2": 0.83, "s4": 0.291}
    steps = {"x8": 0.023, "a4": 1.913, "a8": 0.97, "b8": 0.217, "y8": 0.811}
    constants |= {name: np.float32(v) for name, v in (scales | steps).items()}
    constants["s1"] = rng.uniform(0.1, 0.4, (40, 1, 1, 1)).astype(np.float32)
    constants |= {f"bits{n}": np.float32(n) for n in (2, 4, 8)}
    constants["z"] = np.float32(0)

    def quantized(x, scale, bits, result, **attributes):
        inputs = [x, scale, "z", f"bits{bits}"]
        return helper.make_node("Quant", inputs, [result], domain=QONNX, **attributes)

    def bipolar(x, scale, result):
        return helper.make_node("BipolarQuant", [x, scale], [result], domain=QONNX)

    nodes = [
        quantized("x", "x8", 8, "xq"),
        quantized("w8", "s8", 8, "w8q", narrow=1),
        helper.make_node("Conv", ["xq", "w8q"], ["c8"], name="eight", pads=[1] * 4),
        bipolar("c8", "t1", "c8q"),
        bipolar("w1", "s1", "w1q"),
        helper.make_node("Conv", ["c8q", "w1q"], ["c1"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        quantized("r1", "a4", 4, "r1q", signed=0),
        quantized("w2", "s2", 2, "w2q", narrow=1),
        helper.make_node("Conv", ["r1q", "w2q"], ["c2"], name="two"),
        quantized("c2", "a8", 8, "c2q"),
        helper.make_node("GlobalAveragePool", ["c2q"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        quantized("f", "b8", 8, "fq"),
        quantized("w4", "s4", 4, "w4q", narrow=1),
        helper.make_node("Gemm", ["fq", "w4q"], ["o"], name="four", transB=1),
        quantized("o", "y8", 8, "y"),
    ]
    model = make_model(nodes, {"x": ("N", 3, 6, 6)}, constants=constants, domains=DOMAINS)
    graph = load_onnx(model)
    choices = [str(layer.usual) for layer in tvmquant.quantizable_layers(graph)]
    assert choices == ["w8a8", "w1a1", "w2a4", "w4a8"]
    integer = tvmquant.quantize(graph, strict=True)
    x = rng.standard_normal((16, 3, 6, 6)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"x": x})
    (found,) = simulate(integer, x)
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.95  # means lie on ties
    tvmquant.build(integer, out=tmp_path / "library", batch=16)
    np.testing.assert_array_equal(tvmquant.load(tmp_path / "library")(x), found)


def is_weight(value):
    return qop.is_call(value, qop.FAKE_QUANT) and value.attrs["role"] == qop.WEIGHT
