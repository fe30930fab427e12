import numpy as np
import onnxruntime
import pytest
from onnx import helper

from tvmquant.frontend.fold import evaluate_constant
from tvmquant.frontend.node import Node

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def axes(*values):
    return np.array(values, np.int64)


CASES = [
    ("Unsqueeze", 11, [X], {"axes": [0, 2]}),
    ("Unsqueeze", 13, [X, axes(0, 2)], {}),
    ("Squeeze", 11, [X[:1]], {"axes": [0]}),
    *((op, opset, [X], {"axis": axis}) for op in ("Softmax", "LogSoftmax", "Hardmax")
      for opset, axis in ((9, 1), (11, -1), (11, 0), (13, 1))),
    ("ReduceSum", 11, [X], {"axes": [1], "keepdims": 0}),
    ("ReduceMean", 18, [X, axes(1)], {}),
    ("Slice", 9, [X], {"starts": [1], "ends": [3], "axes": [2]}),
    ("Pad", 7, [X], {"pads": [0, 0, 1, 0, 0, 1], "value": 2.0}),
    ("Clip", 7, [X], {"min": -0.5, "max": 0.5}),
    ("Upsample", 9, [X[None], np.float32([1, 1, 2, 2])], {}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "opset", "inputs", "attributes"), CASES)
def test_constants_fold_as_the_opset_says(op, opset, inputs, attributes):
    names = [f"i{index}" for index in range(len(inputs))]
    proto = helper.make_node(op, names, ["y"], name="node", **attributes)
    (found,) = evaluate_constant(Node(proto, "node", opset), inputs)
    types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in inputs]
    values = [
        helper.make_tensor_value_info(name, kind, array.shape)
        for name, kind, array in zip(names, types, inputs, strict=True)
    ]
    graph = helper.make_graph(
        [proto], "g", values, [helper.make_tensor_value_info("y", types[0], None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, dict(zip(names, inputs, strict=True)))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
