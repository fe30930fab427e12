"""Operators that ONNX spells out in others are imported as those, and equal ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import helper
from tvm import relax

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.frontend.function_bodies import SPELLED_OUT
from tvmquant.frontend.operators import OPERATORS
from tvmquant.graph import layer_name
from tvmquant.ir.rewriter import bindings_of
from tvmquant.simulator import simulate

HEADS = {name: ("N", 2, 5, 4) for name in "qkv"}
MASK = np.where(np.tri(5, dtype=bool), 0, -np.inf).astype(np.float32)
ATTENTION = {
    "plain": ({}, HEADS, {}),
    "causal": ({"is_causal": 1, "scale": 0.3}, HEADS, {}),
    "capped": ({"softcap": 0.5}, HEADS, {}),
    "masked": ({}, HEADS, {"m": MASK}),
    "grouped": ({}, {**HEADS, "q": ("N", 4, 5, 4)}, {}),
    "of rows": ({"q_num_heads": 2, "kv_num_heads": 2}, dict.fromkeys("qkv", ("N", 5, 8)), {}),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention(make_model, compare, case):
    attributes, inputs, constants = ATTENTION[case]
    node = helper.make_node("Attention", [*inputs, *constants], ["y"], "attention", **attributes)
    graph = compare(make_model([node], inputs, constants=constants, opset=23))
    assert [shape[0] for _, shape, _ in (*graph.inputs, *graph.outputs)] == [None] * 4


def test_attention_without_a_mask_is_products_and_a_softmax(make_model, operators):
    node = helper.make_node("Attention", [*"qkv"], ["y"], "attention")
    found = operators(load_onnx(make_model([node], HEADS, opset=23)))
    moved = ("multiply", "permute_dims", "reshape")
    assert [name for name in found if name not in moved] == ["matmul", "nn.softmax", "matmul"]


@pytest.mark.parametrize("interleaved", [0, 1])
def test_a_rotation_of_a_part_of_the_features(make_model, compare, interleaved):
    rng = np.random.default_rng(0)
    tables = {name: rng.standard_normal((5, 2)).astype(np.float32) for name in ("cos", "sin")}
    positions = np.arange(5)[None]
    node = helper.make_node(
        "RotaryEmbedding", ["x", "cos", "sin", "at"], ["y"],
        rotary_embedding_dim=4, interleaved=interleaved,
    )  # fmt: skip
    constants = {**tables, "at": positions}
    compare(make_model([node], {"x": (1, 2, 5, 6)}, constants=constants, opset=23))


def test_names_are_those_of_the_node_and_of_no_other_value(make_model):
    """The model's own values have the names that those of the definition would get."""
    nodes = [
        helper.make_node("Neg", ["x"], ["gate/SwishGate"]),
        helper.make_node("SwiGLU", ["x", "gate/SwishGate"], ["a"], "gate"),
        helper.make_node("Add", ["a", "gate/SwishGate"], ["y"], "sum"),
    ]
    graph = load_onnx(make_model(nodes, {"x": ("N", 3)}, opset=28))
    names = [
        layer_name(call) for _, call in bindings_of(graph.main) if isinstance(call, relax.Call)
    ]
    assert [name.split("/")[0] for name in names] == ["Neg_0", "gate", "gate", "sum"]
    x = np.array([[1, -2, 3]], np.float32)
    (found,) = simulate(graph, x)
    np.testing.assert_allclose(found, x / (1 + np.exp(-x)) * -x - x, rtol=1e-5)


def test_what_cannot_be_imported_of_a_definition_is_named(make_model):
    node = helper.make_node("LinearAttention", [*"qkv"], ["y", "s"], "scan", q_num_heads=2,
                            kv_num_heads=2)  # fmt: skip
    inputs = dict.fromkeys("qkv", ("N", 5, 8))
    model = make_model([node], inputs, outputs=("y", "s"), opset=27)
    with pytest.raises(UnsupportedModelError, match=r"scan/\S* \(\w+\): it loops at run time"):
        load_onnx(model)


def test_shapes_that_the_operator_does_not_take_are_refused(make_model):
    node = helper.make_node("Attention", [*"qkv"], ["y"], "attention")
    inputs = {**HEADS, "k": ("N", 2, 5, 3)}
    with pytest.raises(UnsupportedModelError, match=r"attention\S* \(\w+\): "):
        load_onnx(make_model([node], inputs, opset=23))


def test_each_has_a_definition_and_no_converter():
    schemas = {name: onnx.defs.get_schema(name) for name in SPELLED_OUT if onnx.defs.has(name)}
    assert len(schemas) > 5
    assert all(s.has_function or s.has_context_dependent_function for s in schemas.values())
    assert not SPELLED_OUT & OPERATORS
