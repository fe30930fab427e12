"""Evaluation of nodes whose inputs are all constant, with ONNX's reference implementation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from tvmquant.frontend.dimensions import (
    MAX_CONSTANT,
    Array,
    UnsupportedNodeError,
    check_size,
)
from tvmquant.frontend.node import Node

# Until opset 13 they take their input as a matrix, whose columns begin at their axis.
FLATTENING = ("Softmax", "LogSoftmax", "Hardmax")

# Opsets from which on the reference implementation has operators that older ones have equally.
_IMPLEMENTED_SINCE = {"DequantizeLinear": 19}

# Numbers that shapes, repetitions and limits consist of.
_FEW = 64

# Their results differ from run to run.
NOT_FOLDED = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def evaluate_constant(node: Node, inputs: list[Array | None]) -> tuple[Array, ...]:
    """Return the outputs of a node with constant inputs.

    Raises
    ------
    UnsupportedNodeError
        If ONNX's reference implementation cannot evaluate the node.
    """
    if node.op_type in FLATTENING and node.opset < 13 and inputs[0] is not None:
        return _evaluate_flattened(node, inputs[0])
    given = zip(node.inputs, inputs, strict=True)
    feeds = {name: array for name, array in given if name and array is not None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a float weight may be scaled into infinity; the weight check names it afterwards
            with np.errstate(all="ignore"):
                model = _model_of(node, feeds)
                _check_sizes(model, feeds)
                results = ReferenceEvaluator(model).run(None, feeds)
    except UnsupportedNodeError:
        raise
    except Exception as error:  # the reference implementation raises anything
        raise UnsupportedNodeError(f"its constant value cannot be computed: {error}") from error
    return tuple(np.asarray(result) for result in results)


def _evaluate_flattened(node: Node, array: Array) -> tuple[Array, ...]:
    """Evaluate an operator that, before opset 13, works on the rows of a matrix.

    The reference implementation knows these operators as they are since, along one axis.
    """
    axis = node.integer("axis", 1)
    axis = axis + array.ndim if axis < 0 else axis
    if not 0 <= axis <= array.ndim:
        raise UnsupportedNodeError(f"axis {axis} does not exist in a {array.ndim}-D tensor")
    rows = array.reshape(math.prod(array.shape[:axis]), math.prod(array.shape[axis:]))
    proto = onnx.helper.make_node(node.op_type, node.inputs, node.outputs, node.name, axis=1)
    (result,) = evaluate_constant(Node(proto, node.name, 13), [rows])
    return (result.reshape(array.shape),)


def _check_sizes(model: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """Reject a result that a few numbers make large, such as a shape or a count of repetitions."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name)
        for name, array in feeds.items()
        if array.size <= _FEW
    )
    inferred = onnx.shape_inference.infer_shapes(known)
    for value in inferred.graph.output:
        dims = value.type.tensor_type.shape.dim
        check_size([dim.dim_value for dim in dims], MAX_CONSTANT)


def _model_of(node: Node, feeds: dict[str, Array]) -> onnx.ModelProto:
    """Return a model of one node: of a node alone the evaluator ignores the opset."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
    version = max(node.opset, _IMPLEMENTED_SINCE.get(node.op_type, 0))
    opset = onnx.helper.make_opsetid(node.proto.domain, version)
    graph = onnx.helper.make_graph([node.proto], node.name, inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[opset])
