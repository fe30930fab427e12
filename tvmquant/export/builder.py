"""The nodes and constants of an ONNX graph under construction, each under a name of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

# Constants of so few elements, such as shapes and clip bounds, are kept once for all their readers.
SHARED_ELEMENTS = 16
# Types of which several elements share a byte, by name.
PACKED = {"int4": TensorProto.INT4, "int2": getattr(TensorProto, "INT2", 0)}


class OnnxBuilder:
    """Collects nodes in the order of computation.

    Parameters
    ----------
    opset : int
    reserved : iterable of str
        Names of the graph's inputs and outputs, which no other value may take.
    """

    def __init__(self, opset: int, reserved: Iterable[str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._node_names: set[str] = set()
        self._value_names = set(reserved)
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node of one output, and return the name of that.

        Parameters
        ----------
        operator : str
        inputs : sequence of str
            Names of values; empty where an optional one is left out.
        name : str
            Of the node, or as much like it as is free.
        **attributes
            None: left out.
        """
        return self.node_of_many(operator, inputs, name, 1, **attributes)[0]

    def node_of_many(
        self, operator: str, inputs: Sequence[str], name: str, outputs: int, **attributes: Any
    ) -> list[str]:
        """Append a node of several outputs, and return their names."""
        name = _unused(name or operator, self._node_names)
        results = [
            _unused(name if i == 0 else f"{name}.{i}", self._value_names) for i in range(outputs)
        ]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(operator, list(inputs), results, name, **given))
        return results

    def constant(self, array: Any, name: str) -> str:
        """Return the name of a constant of numpy's types."""
        array = np.asarray(array)
        key = str(array.dtype), array.shape, array.tobytes()
        if array.size <= SHARED_ELEMENTS and key in self._shared:
            return self._shared[key]
        name = _unused(name, self._value_names)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        # ascontiguousarray gives scalars an axis
        del self.constants[-1].dims[array.ndim :]
        self._shared[key] = name
        return name

    def packed(self, array: Array, kind: str, name: str) -> str:
        """Return the name of a constant of `PACKED` integers."""
        name = _unused(name, self._value_names)
        values = array.astype(np.int8).reshape(-1)
        self.constants.append(helper.make_tensor(name, PACKED[kind], array.shape, values))
        return name

    def rename(self, name: str, wanted: str) -> None:
        """Give a value that a node computes another name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, found in enumerate(names):
                    if found == name:
                        names[index] = wanted

    def keep_needed(self, outputs: Iterable[str]) -> None:
        """Leave out nodes and constants that none of the outputs follows from."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = [constant for constant in self.constants if constant.name in needed]


def _unused(name: str, used: set[str]) -> str:
    """Return a name, numbered where it is used, and note it."""
    unused, count = name, 1
    while unused in used:
        count += 1
        unused = f"{name}:{count}"
    used.add(unused)
    return unused
