"""Scales, zero points and integers that are not valid are refused, by node, before the import."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.frontend.dialects import rewrite_model
from tvmquant.frontend.prepare import prepare

IMAGE = {"x": ("N", 3, 6, 4)}
WEIGHT = np.arange(-60, 60, dtype=np.int8).reshape(5, 3, 4, 2)


def refusal(model):
    """Return the line about the one node that is refused."""
    with pytest.raises(UnsupportedModelError) as error:
        load_onnx(model)
    first, *lines = str(error.value).splitlines()
    assert first == "model 'test' has 1 node that tvmquant cannot import:"
    (line,) = lines
    return line.strip()


def activation_model(make_model, scale, zero_point, *, back=None, **attributes):
    """Return a model of QuantizeLinear, and DequantizeLinear with a zero point of its own."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize", **attributes),
        helper.make_node("DequantizeLinear", ["q", "t", "u"], ["y"], name="dequantize"),
    ]
    constants = {
        "s": scale,
        "z": zero_point,
        "t": np.float32(1),
        "u": np.uint8(0) if back is None else back,
    }
    return make_model(nodes, IMAGE, constants=constants, opset=21)


def weight_model(make_model, weight, scale, zero_point=None, **attributes):
    """Return a convolution of dequantized weights."""
    constants = {"w": weight, "s": scale}
    names = ["w", "s"]
    if zero_point is not None:
        constants["z"] = zero_point
        names.append("z")
    nodes = [
        helper.make_node("DequantizeLinear", names, ["wf"], name="weight", **attributes),
        helper.make_node("Conv", ["x", "wf"], ["y"], name="conv"),
    ]
    return make_model(nodes, IMAGE, constants=constants, opset=21)


SCALES = {0.0: "0", -0.5: "-0.5", np.nan: "nan", np.inf: "inf"}


@pytest.mark.parametrize("scale", SCALES)
def test_scales_of_activations(make_model, scale):
    line = refusal(activation_model(make_model, np.float32(scale), np.uint8(0)))
    assert line == (
        f"quantize (QuantizeLinear): its scale 's' holds {SCALES[scale]}, expected finite numbers "
        "> 0; quantize the model again"
    )


@pytest.mark.parametrize("scale", SCALES)
def test_scales_of_weights(make_model, scale):
    """One among many is enough."""
    scales = np.float32([0.1, 0.2, scale, 0.3, 0.4])
    line = refusal(weight_model(make_model, WEIGHT, scales, axis=0))
    assert line.startswith(f"weight (DequantizeLinear): its scale 's' holds {SCALES[scale]}")


def test_scales_that_the_file_computes(make_model):
    model = weight_model(make_model, WEIGHT, np.float32(0.5))
    model.graph.node[0].input[1] = "difference"
    model.graph.node.insert(0, helper.make_node("Sub", ["s", "s"], ["difference"]))
    assert "its scale 'difference' holds 0" in refusal(model)


def test_scales_of_nodes_that_were_rewritten(make_model):
    names = ["x", "s", "z", "w", "ws", "wz", "s", "z", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], name="conv")
    constants = {
        "s": np.float32(1e30),
        "z": np.uint8(0),
        "w": WEIGHT,
        "ws": np.float32(1e30),
        "wz": np.int8(0),
        "b": np.ones(5, np.int32),
    }
    model = make_model([node], {"x": (1, 3, 6, 4)}, constants=constants, element=2)
    line = refusal(model)
    assert line.startswith("conv/bias/DequantizeLinear (DequantizeLinear): its scale")
    assert "holds inf" in line


def test_a_bias_beyond_float32(make_model):
    model = weight_model(make_model, WEIGHT, np.float32(0.1))
    bias = np.full(5, 2**31 - 1, np.int32)
    model.graph.initializer.extend([from_array(bias, "b"), from_array(np.float32(1e30), "bs")])
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], name="bias")
    )
    model.graph.node[-1].input.append("bf")
    line = refusal(model)
    assert line.startswith("bias (DequantizeLinear): its integers 'b' times its scale 'bs' reach")


@pytest.mark.parametrize("back", [np.int8(0), np.uint16(0)])
def test_a_zero_point_of_another_type_than_the_integers(make_model, back):
    model = activation_model(make_model, np.float32(1), np.uint8(0), back=back)
    line = refusal(model)
    assert line == (
        f"dequantize (DequantizeLinear): its zero point 'u' has type {back.dtype}, expected uint8 "
        "as its integers have; quantize the model again"
    )


def test_a_zero_point_of_another_type_than_the_node_says(make_model):
    model = activation_model(make_model, np.float32(1), np.uint8(0), output_dtype=TensorProto.INT8)
    assert "zero point 'z' has type uint8, expected int8" in refusal(model)


def test_a_zero_point_of_another_type_than_the_weights(make_model):
    line = refusal(weight_model(make_model, WEIGHT, np.float32(1), np.uint8(128)))
    assert line.startswith("weight (DequantizeLinear): its zero point 'z' has type uint8")


def test_zero_points_of_a_bias(make_model):
    weight = WEIGHT.astype(np.int32)
    line = refusal(weight_model(make_model, weight, np.float32(1), np.int32(1)))
    assert "zero point 'z' is not 0, expected 0 for integers of type int32" in line


@pytest.mark.parametrize(
    ("scale", "zero_point", "attributes", "message"),
    [
        (np.ones(4), None, {"axis": 0}, r"scale 's' has shape (4,), expected (5,) for axis 0 of"),
        (np.ones(5), None, {}, "expected (3,) for axis 1 of its input of shape (5, 3, 4, 2)"),
        (np.ones(5), np.zeros(3), {"axis": 0}, "'z' has shape (3,), expected (5,) as its scale"),
        (np.ones(5), None, {"axis": 4}, "its axis 4 does not exist in its 4-D input"),
        (np.ones((5, 1)), None, {"axis": 0}, "expected one number, or one for each index of axis"),
        (np.ones((5, 3, 4, 2)), None, {"axis": 2, "block_size": 3},
         "expected (5, 3, 2, 2) for axis 2 of its input of shape (5, 3, 4, 2) in blocks of 3"),
        (np.ones((5, 3, 1, 2)), None, {"axis": 2, "block_size": -1}, "it has block_size=-1"),
        (np.ones(0), None, {"axis": 0}, "its scale 's' is empty"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_the_weights(make_model, scale, zero_point, attributes, message):
    zero = None if zero_point is None else zero_point.astype(np.int8)
    model = weight_model(make_model, WEIGHT, scale.astype(np.float32), zero, **attributes)
    line = refusal(model)
    assert line.startswith("weight (DequantizeLinear): ")
    assert message in line


def faults(model):
    return rewrite_model(prepare(model, "test"))[1]


@pytest.mark.parametrize(
    ("extent", "block", "blocks"), [(4, 2, 2), (4, 3, 2), (4, 7, 1), (3, 1, 3)]
)
def test_blocks_with_and_without_a_tail(make_model, extent, block, blocks):
    weight = WEIGHT[:, :, :extent]
    scale = np.ones((5, 3, blocks, 2), np.float32)
    model = weight_model(make_model, weight, scale, axis=2, block_size=block)
    assert not faults(model)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_narrow_weights(make_model, kind):
    levels = helper.make_tensor("w", getattr(TensorProto, kind), WEIGHT.shape, WEIGHT.ravel() % 8)
    zero = helper.make_tensor("z", getattr(TensorProto, kind), [5], [0, 1, 2, 3, 4])
    model = weight_model(make_model, levels, np.ones(5, np.float32), zero, axis=0)
    assert not faults(model)


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_weights_of_few_bits_with_a_point_are_numbers_that_the_file_stores(make_model, kind):
    element = getattr(TensorProto, kind)
    levels = helper.make_tensor("w", element, WEIGHT.shape, np.ones(WEIGHT.size))
    zero = helper.make_tensor("z", element, [], [0])
    assert not faults(weight_model(make_model, levels, np.float32(1), zero))


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_activations_of_few_bits_with_a_point_are_refused(make_model, kind):
    zero = helper.make_tensor("z", getattr(TensorProto, kind), [], [0])
    back = helper.make_tensor("u", getattr(TensorProto, kind), [], [0])
    found = faults(activation_model(make_model, np.float32(1), zero, back=back))
    assert set(found) == {"quantize", "dequantize"}
    name = kind.lower().replace("float8", "float8_")
    assert found["quantize"].startswith(f"its integers have type {name}, expected one of int2")
    assert found["quantize"].endswith("quantize the model to one of these")


def test_activations_that_are_no_integers_are_refused(make_model):
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], name="back")
    line = refusal(make_model([node], IMAGE, constants={"s": np.float32(1)}, opset=21))
    assert line.startswith("back (DequantizeLinear): its integers have type float32, expected one")
