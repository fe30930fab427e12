"""Graphs to export, and what ONNX Runtime makes of the file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax

from tests.tvmquant.random_graphs import run_onnxruntime
from tvmquant.bit_choice import BitChoice
from tvmquant.export import Exported, to_onnx
from tvmquant.export.comparison import Comparison, compare
from tvmquant.frontend import load_onnx
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers
from tvmquant.quantization import apply_calibration, calibrate

OPSETS = (13, 18, 20, 21, 25)


def as_graph(module: tvm.IRModule, outputs: int = 1, level: str = "L1") -> Graph:
    """Return a module of one input as a graph."""
    names = tuple(f"y{i}" for i in range(outputs))
    return Graph(module, level, "small", ("x",), names)


def graph_of_several(
    shape: Sequence[Any], body: Callable[[relax.BlockBuilder, relax.Var], Sequence[relax.Expr]]
) -> Graph:
    """Build ``main(x)`` of several outputs, as an import does."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            results = [builder.emit_output(result) for result in body(builder, x)]
        builder.emit_func_output(relax.Tuple(results))
    return as_graph(builder.get(), len(results))


def checked(graph: Graph, **options: Any) -> Exported:
    """Export a graph, and let onnx check what comes out."""
    exported = to_onnx(graph, **options)
    onnx.checker.check_model(exported.model, full_check=True)
    return exported


def run(exported: Exported, x: np.ndarray) -> list[np.ndarray]:
    """Run the model node by node."""
    return run_onnxruntime(exported.model, x)


def annotated(path: Path, images: Any, choice: str | None = None, **options: Any) -> Graph:
    """Import, calibrate and annotate, with one choice wherever a layer takes it."""
    graph = load_onnx(path)
    calibration = calibrate(graph, images, **options)
    return apply_calibration(graph, calibration, choices=choices_of(graph, choice), **options)


def choices_of(graph: Graph, choice: str | None) -> dict[str, BitChoice]:
    """Return one choice for all layers, without groups for those that cannot have them."""
    if choice is None:
        return {}
    wanted, plain = BitChoice.parse(choice), BitChoice.parse(choice.partition("g")[0])
    layers = quantizable_layers(graph)
    return {layer.id: wanted if layer.allows(wanted) else plain for layer in layers}


def compared(exported: Exported, images: Sequence[np.ndarray]) -> Comparison:
    """Compare item by item with the exact integers."""
    return compare(exported, [(image[None],) for image in images])


def initialisers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of a model by name."""
    return {constant.name: constant for constant in model.graph.initializer}


def nodes_of(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    """Return the nodes of an operator."""
    return [node for node in model.graph.node if node.op_type == operator]
