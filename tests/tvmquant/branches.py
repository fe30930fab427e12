"""The smallest network with everything that constrains bit widths.

    x -> stem -> relu -+-> left  -+-> add -> relu -> depthwise -> relu -> pool -> head
                       +-> right -+

The ends are pinned, the branches are tied by the activation that both read, and the depthwise
convolution has no narrow kernel.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 6, 6)
CLASSES = 5
LAYERS = ("stem", "left", "right", "depthwise", "head")


def export_branches(path: Path) -> Path:
    """Write the network, with random weights, as ONNX."""
    rng = np.random.default_rng(0)
    weights = {
        "stem_w": rng.normal(size=(8, 3, 3, 3)),
        "left_w": rng.normal(size=(8, 8, 3, 3)),
        "right_w": rng.normal(size=(8, 8, 1, 1)),
        "depthwise_w": rng.normal(size=(8, 1, 3, 3)),
        "head_w": rng.normal(size=(CLASSES, 8)),
        "head_b": rng.normal(size=CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem_w"], ["a"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "left_w"], ["c"], "left", pads=[1] * 4),
        helper.make_node("Conv", ["b", "right_w"], ["d"], "right"),
        helper.make_node("Add", ["c", "d"], ["e"], "add"),
        helper.make_node("Relu", ["e"], ["f"], "relu2"),
        helper.make_node("Conv", ["f", "depthwise_w"], ["g"], "depthwise", pads=[1] * 4, group=8),
        helper.make_node("Relu", ["g"], ["h"], "relu3"),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], "pool"),
        helper.make_node("Flatten", ["i"], ["j"], "flatten"),
        helper.make_node("Gemm", ["j", "head_w", "head_b"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(w.astype("float32"), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
