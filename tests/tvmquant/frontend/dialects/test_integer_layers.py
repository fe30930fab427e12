"""ConvInteger and MatMulInteger, alone and between what quantizes and scales, compute as before."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

INT32 = TensorProto.INT32
SHAPE = (2, 3, 6, 5)


def draw(dtype, *shape, low=None, high=None):
    limits = np.iinfo(dtype)
    low, high = limits.min if low is None else low, limits.max if high is None else high
    return np.random.default_rng(3).integers(low, high + 1, shape).astype(dtype)


def operators(model):
    return [node.op_type for node in model.graph.node]


def conv_model(make_model, w_zero):
    """Return a convolution of weights of 7 bits: of more, ONNX Runtime saturates without VNNI."""
    constants = {"z": np.uint8(9), "w": draw(np.uint8, 4, 3, 3, 2, high=127), "wz": w_zero}
    names = ["x", "w", "z"] + ["wz"] * (w_zero is not None)
    node = helper.make_node("ConvInteger", names, ["y"], name="conv", pads=[1, 1, 0, 0])
    return make_model(
        [node], {"x": SHAPE}, constants=constants if "wz" in names else {**constants, "wz": 0},
        element=TensorProto.UINT8, output_element=INT32, opset=21,
    )  # fmt: skip


@pytest.mark.parametrize("w_zero", [None, np.uint8(3)])
def test_sums_of_a_convolution(make_model, equal_to_original, w_zero):
    model = conv_model(make_model, w_zero)
    result = equal_to_original(model, {"x": draw(np.uint8, *SHAPE)})
    assert operators(result)[-2:] == ["Conv", "Cast"]
    assert result.graph.node[-2].name == "conv"


def test_zero_points_for_each_channel(make_model, rewritten, run):
    """ONNX Runtime takes one for all."""
    inputs = {"x": draw(np.uint8, *SHAPE)}
    (expected,) = run(conv_model(make_model, np.uint8(3)), inputs)
    result = rewritten(conv_model(make_model, np.uint8([3, 3, 3, 3])))
    np.testing.assert_array_equal(run(result, inputs)[0], expected)


@pytest.mark.parametrize("w_zero", ["none", "one", "columns"])
def test_sums_of_a_product_of_matrices(make_model, equal_to_original, w_zero):
    columns = np.arange(4, dtype=np.int8)
    constants = {
        "z": np.uint8(9),
        "w": draw(np.int8, 5, 4, low=-63, high=63),
        "wz": columns if w_zero == "columns" else np.int8(3),
    }
    names = ["x", "w", "z"] + ["wz"] * (w_zero != "none")
    model = make_model(
        [helper.make_node("MatMulInteger", names, ["y"])], {"x": (2, 3, 5)}, constants=constants,
        element=TensorProto.UINT8, output_element=INT32, opset=21,
    )  # fmt: skip
    equal_to_original(model, {"x": draw(np.uint8, 2, 3, 5)})


def dynamic_model(make_model, kind, *, w_scale, form, readers=1):
    """Return a layer between DynamicQuantizeLinear and what scales its sums."""
    weight = draw(np.int8, 4, 3, 3, 3) if kind == "Conv" else draw(np.int8, 5, 4)
    constants = {
        "w": weight // 2,
        "wz": np.int8(2),
        "ws": w_scale,
        "bias": np.float32([0.1, 0.2, 0.3, 0.4]).reshape((4, 1, 1) if kind == "Conv" else 4),
    }
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])]
    for index in range(readers):
        sums = helper.make_node(
            f"{kind}Integer", ["q", "w", "z", "wz"], [f"a{index}"], name=f"layer{index}"
        )
        cast = helper.make_node("Cast", [f"a{index}"], [f"c{index}"], to=TensorProto.FLOAT)
        scaling = {
            "product": [("s", "ws", "p"), (f"c{index}", "p", "r")],
            "swapped": [("ws", "s", "p"), ("p", f"c{index}", "r")],
            "chain": [(f"c{index}", "s", "p"), ("p", "ws", "r")],
            "weight first": [(f"c{index}", "ws", "p"), ("s", "p", "r")],
        }[form]
        nodes += [sums, cast]
        for left, right, result in scaling:
            renamed = [name + str(index) if name == "p" else name for name in (left, right, result)]
            nodes.append(
                helper.make_node("Mul", renamed[:2], [renamed[2].replace("r", f"r{index}")])
            )
        nodes.append(helper.make_node("Add", [f"r{index}", "bias"], [f"y{index}"]))
    shape = SHAPE if kind == "Conv" else (2, 5)
    outputs = [f"y{index}" for index in range(readers)]
    model = make_model(nodes, {"x": shape}, outputs=outputs, constants=constants, opset=21)
    return model, {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


SCALES = {
    "one": np.float32(0.02),
    "conv channels": np.float32([0.01, 0.02, 0.03, 0.04]).reshape(4, 1, 1),
    "matmul columns": np.float32([0.01, 0.02, 0.03, 0.04]),
}


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("Conv", "one"), ("Conv", "conv channels"), ("MatMul", "one"), ("MatMul", "matmul columns")],
)
@pytest.mark.parametrize("form", ["product", "swapped", "chain", "weight first"])
def test_layers_quantized_dynamically(make_model, rewritten, run, kind, scale, form):
    model, inputs = dynamic_model(make_model, kind, w_scale=SCALES[scale], form=form)
    result = rewritten(model)
    expected = ["DequantizeLinear", "DequantizeLinear", kind, "Add"]
    assert operators(result) == ["DynamicQuantizeLinear", *expected]
    assert result.graph.node[-2].name == "layer0"
    assert list(result.graph.node[1].input) == ["q", "s", "z"]
    np.testing.assert_allclose(run(result, inputs)[0], run(model, inputs)[0], rtol=1e-5, atol=1e-5)


def test_layers_that_read_one_tensor_quantized_dynamically(make_model, rewritten, run):
    model, inputs = dynamic_model(
        make_model, "MatMul", w_scale=SCALES["one"], form="product", readers=3
    )
    result = rewritten(model)
    assert operators(result).count("DynamicQuantizeLinear") == 1
    assert operators(result).count("MatMul") == 3
    for found, expected in zip(run(result, inputs), run(model, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_of_two_tensors_quantized_dynamically(make_model, rewritten, run):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("DynamicQuantizeLinear", ["n"], ["r", "u", "v"]),
        helper.make_node("MatMulInteger", ["r", "t", "v", "z"], ["a"]),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "u"], ["p"]),
        helper.make_node("Mul", ["c", "p"], ["y"]),
    ]
    model = make_model(nodes, {"x": (2, 3, 5)}, opset=21)
    result = rewritten(model)
    assert operators(result)[-1] == "MatMul"
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)}
    np.testing.assert_allclose(run(result, inputs)[0], run(model, inputs)[0], rtol=1e-5)


@pytest.mark.parametrize("multiplied", [False, True])
def test_scales_known_before(make_model, rewritten, run, multiplied):
    """The file may hold the product of both scales instead of the weight's."""
    constants = {
        "s": np.float32(0.03),
        "z": np.uint8(100),
        "w": draw(np.int8, 5, 4) // 2,
        "ws": np.float32(0.03 * 0.02) if multiplied else np.float32(0.02),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["a"]),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "ws"], ["d"]),
        helper.make_node("Mul", ["d", "s"], ["y"]),
    ]
    if multiplied:
        nodes[3:] = [helper.make_node("Mul", ["c", "ws"], ["y"])]
    model = make_model(nodes, {"x": (2, 5)}, constants=constants, opset=21)
    result = rewritten(model)
    assert operators(result)[-1] == "MatMul"
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)}
    np.testing.assert_allclose(run(result, inputs)[0], run(model, inputs)[0], rtol=1e-5, atol=1e-5)


def test_sums_that_are_read_elsewhere_too_stay_integers(make_model, equal_to_original):
    model, inputs = dynamic_model(make_model, "MatMul", w_scale=SCALES["one"], form="product")
    model.graph.output.append(helper.make_tensor_value_info("a0", INT32, None))
    del model.graph.output[0]
    assert "Cast" in operators(equal_to_original(model, inputs))


@pytest.mark.parametrize(
    ("kind", "shape"), [("Conv", (3,)), ("Conv", (4, 1)), ("MatMul", (2, 1)), ("MatMul", (2, 4))]
)
def test_factors_that_are_no_scales_of_channels_stay_factors(
    make_model, rewritten, run, kind, shape
):
    scale = np.linspace(0.01, 0.04, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    model, inputs = dynamic_model(make_model, kind, w_scale=scale, form="product")
    result = rewritten(model)
    assert operators(result).count("Mul") == 2
    np.testing.assert_allclose(run(result, inputs)[0], run(model, inputs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("fused", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_products_that_the_optimizer_fused(make_model, rewritten, run, fused, columns, biased):
    """Of one tensor, twice, which is quantized once."""
    scales = np.float32([0.01, 0.02, 0.03, 0.04]) if columns else np.float32(0.02)
    constants = {
        "b": draw(np.int8, 5, 4) // 2,
        "bs": scales,
        "bz": np.ones(scales.shape, np.int8),
        "bias": np.float32([0.1, 0.2, 0.3, 0.4]),
    }
    bias = ["bias"] * biased
    nodes = []
    if fused == "MatMulIntegerToFloat":
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
        inputs = ["q", "b", "s", "bs", "z", "bz", *bias]
    else:
        inputs = ["x", "b", "bs", "bz", *bias]
    for name in ("y", "u"):
        nodes.append(
            helper.make_node(fused, inputs, [name], domain="com.microsoft", name=f"layer {name}")
        )
    model = make_model(
        nodes, {"x": (2, 3, 5)}, outputs=("y", "u"), constants=constants, opset=21,
        domains={"com.microsoft": 1},
    )  # fmt: skip
    result = rewritten(model)
    assert operators(result).count("DynamicQuantizeLinear") == 1
    names = [node.name for node in result.graph.node if node.op_type == "MatMul"]
    assert names == ["layer y", "layer u"]
    data = {"x": np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)}
    for found, expected in zip(run(result, data), run(model, data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_whose_scales_have_another_form_are_refused(make_model):
    constants = {"b": draw(np.int8, 5, 4), "bs": np.ones((5, 4), np.float32)}
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "b", "bs"], ["y"], domain="com.microsoft", name="layer"
    )
    model = make_model([node], {"x": (3, 5)}, constants=constants, domains={"com.microsoft": 1})
    with pytest.raises(UnsupportedModelError, match=r"layer .*: scales 'bs' have shape \(5, 4\)"):
        load_onnx(model)
