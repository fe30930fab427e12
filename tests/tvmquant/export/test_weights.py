"""Weights are stored in the integers that the library multiplies, at their width."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tvmquant.random_graphs import run_onnxruntime
from tvmquant.export.builder import OnnxBuilder
from tvmquant.export.weights import WeightLayout, write_weight
from tvmquant.formats import Uniform
from tvmquant.passes.accumulator import QuantizedWeight
from tvmquant.quantizer import grouped_weight_scales, weight_scales


def drawn(shape, bits, group=0):
    """Return a weight, output channels first, of random values."""
    values = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    if group:
        scale, multiplier = grouped_weight_scales(values, group, 0, bits)
        multiplier = multiplier.astype(np.float32)
    else:
        scale, multiplier = weight_scales(values, 0, bits), None
    scale = scale.astype(np.float32).astype(np.float64)
    return QuantizedWeight(
        values, scale, Uniform(bits, signed=True, group=group), multiplier=multiplier
    )


def written(weight, layout, opset, *, packs=True):
    """Return the integers' type, the nodes, and what they compute."""
    builder = OnnxBuilder(opset, ["x"])
    name = write_weight(builder, weight, layout, "layer.weight", packs=packs)
    values = layout.back(weight.values)
    zero = helper.make_node("Mul", ["x", "zero"], ["nothing"])
    total = helper.make_node("Add", ["nothing", name], ["y"])
    graph = helper.make_graph(
        [*builder.nodes, zero, total],
        "weight",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ())],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape)],
        [*builder.constants, numpy_helper.from_array(np.float32(0.0), "zero")],
    )
    opsets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    onnx.checker.check_model(model, full_check=True)
    (found,) = run_onnxruntime(model, np.ones((), np.float32))
    integers = next(c for c in builder.constants if c.name == "layer.weight/integers")
    kind = TensorProto.DataType.Name(integers.data_type)
    return kind, [node.op_type for node in builder.nodes], found


def expected(weight, layout):
    """Return the integers times the steps of the channels."""
    unit = weight.scale.astype(np.float32).reshape(-1, *(1,) * (weight.values.ndim - 1))
    multiplier = weight.group_multiplier
    if multiplier is not None:  # as a block's step is rounded
        unit = unit * multiplier.astype(np.float32)
    return layout.back(weight.levels(weight.scale).astype(np.float32) * unit)


@pytest.mark.parametrize(
    ("bits", "opset", "packs", "kind"),
    [
        (8, 25, True, "INT8"),
        (5, 25, True, "INT8"),
        (4, 21, True, "INT4"),
        (3, 25, True, "INT4"),
        (2, 21, True, "INT4"),
        (2, 25, True, "INT2"),
        (4, 20, True, "INT8"),
        (4, 21, False, "INT8"),
    ],
)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((6, 4, 3, 2), WeightLayout(0)), ((6, 4, 3, 2), WeightLayout(1)), ((6, 4), WeightLayout(1))],
    ids=["convolution", "transposed", "dense"],
)
def test_integers_of_every_width(bits, opset, packs, kind, shape, layout):
    weight = drawn(shape, bits)
    found_kind, nodes, found = written(weight, layout, opset, packs=packs)
    assert (found_kind, nodes) == (kind, ["DequantizeLinear"])
    np.testing.assert_array_equal(found, expected(weight, layout))


@pytest.mark.parametrize(
    ("shape", "layout", "opset", "kind"),
    [
        ((6, 64, 3, 3), WeightLayout(0), 21, "INT4"),
        ((6, 64), WeightLayout(1), 21, "INT4"),
        ((6, 64, 3, 3), WeightLayout(1), 21, "INT4"),
        # of a row of 3 * 20 weights no group is a block of channels
        ((6, 20, 3, 3), WeightLayout(0), 21, "INT8"),
        ((6, 40), WeightLayout(1), 21, "INT8"),
        ((6, 64), WeightLayout(1), 20, "INT8"),
    ],
)
def test_groups_are_blocks_or_multiplied_out(shape, layout, opset, kind):
    weight = drawn(shape, 4, group=32)
    found_kind, _, found = written(weight, layout, opset)
    assert found_kind == kind
    np.testing.assert_allclose(found, expected(weight, layout), rtol=2e-7)
    unit = weight.scale.astype(np.float32).reshape(-1, *(1,) * (len(shape) - 1))
    steps = layout.back(np.ascontiguousarray(np.broadcast_to(unit, shape)))
    integers = np.rint(found / steps)
    np.testing.assert_array_equal(integers, layout.back(weight.round(weight.scale)))


@pytest.mark.parametrize("opset", [13, 21])
def test_transposed_groups_have_outputs_of_their_own(opset):
    layout = WeightLayout(1, groups=3)
    weight = drawn((6, 4, 2, 2), 8)  # (O, I / groups): 2 outputs of 4 inputs in each group
    _, _, found = written(weight, layout, opset)
    assert found.shape == (12, 2, 2, 2)
    np.testing.assert_array_equal(found, expected(weight, layout))
