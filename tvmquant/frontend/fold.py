"""Evaluation of nodes whose inputs are all constant, with ONNX's reference implementation."""

from __future__ import annotations

import warnings

import numpy as np
from onnx.reference import ReferenceEvaluator

from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node

# Their results differ from run to run, or must stay visible in the graph.
NOT_FOLDED = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
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
    feeds = {name: array for name, array in zip(node.inputs, inputs, strict=True) if name}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a float weight may be scaled into infinity; the weight check names it afterwards
            with np.errstate(all="ignore"):
                evaluator = ReferenceEvaluator(node.proto, opsets={node.proto.domain: node.opset})
                results = evaluator.run(None, feeds)
    except Exception as error:  # the reference implementation raises anything
        raise UnsupportedNodeError(f"its constant value cannot be computed: {error}") from error
    return tuple(np.asarray(result) for result in results)
