"""Small ONNX models of the QDQ format."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def named(tensor, name):
    """Return a tensor under another name."""
    found = TensorProto()
    found.CopyFrom(tensor)
    found.name = name
    return found


class Qdq:
    """Builds a model in which tensors are quantized and dequantized."""

    def __init__(self, activation="uint8", zero=100, scale=0.05):
        self.nodes, self.constants = [], {}
        self.activation, self.zero, self.scale = activation, zero, scale

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = named(array, name) if isinstance(array, TensorProto) else array
        return name

    def node(self, op, *inputs, outputs=1, **attributes):
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, made, name=name, **attributes))
        return made[0]

    def quantized(self, x, scale=None, zero=None, dtype=None):
        held = np.array(self.zero if zero is None else zero, dtype or self.activation)
        return self.node("QuantizeLinear", x, np.float32(scale or self.scale), held)

    def pair(self, x, scale=None, zero=None, dtype=None):
        held = np.array(self.zero if zero is None else zero, dtype or self.activation)
        q = self.quantized(x, scale, zero, dtype)
        return self.node("DequantizeLinear", q, np.float32(scale or self.scale), held)

    def weight(self, shape, dtype="int8", zero=0, axis=None, low=-127, high=127, seed=0):
        rng = np.random.default_rng(seed)
        levels = rng.integers(low, high + 1, shape).astype(dtype)
        scale = np.float32(0.003)
        zeros = np.array(zero, dtype)
        if axis is not None:
            scale = rng.uniform(0.001, 0.004, shape[axis]).astype(np.float32)
            zeros = np.full(shape[axis], zero, dtype)
        attributes = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", levels, scale, zeros, **attributes)

    def bias(self, count, scale=0.05 * 0.003):
        values = np.random.default_rng(1).integers(-900, 900, count).astype(np.int32)
        return self.node("DequantizeLinear", values, np.float32(scale))

    def model(self, y, *, element=TensorProto.FLOAT, output_element=None, opset=21):
        """Return the model of an input x (N, 4, 6, 5) whose output is ``y``."""
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        initialisers = [
            value
            if isinstance(value, TensorProto)
            else numpy_helper.from_array(np.asarray(value), name)
            for name, value in self.constants.items()
        ]
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("x", element, ("N", 4, 6, 5))],
            [helper.make_tensor_value_info("y", output_element or element, None)],
            initialisers,
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
