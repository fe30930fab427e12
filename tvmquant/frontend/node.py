"""One ONNX node, its attributes decoded, under the name that becomes its layer's name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from tvmquant.errors import ModelError
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError


def read_tensor(tensor: onnx.TensorProto) -> Array:
    """Return the content of a tensor of the file.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is damaged: its data do not fill its shape, or its shape or type is none.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"its shape is {tuple(tensor.dims)}, expected numbers >= 0")
    return np.asarray(onnx.numpy_helper.to_array(tensor))


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph.

    Parameters
    ----------
    proto : onnx.NodeProto
    name : str
        Unique in the graph.
    opset : int
        Version of the operator set of the node's domain.
    unread : frozenset of str
        Outputs that the file names but nothing reads, which count as left out.
    """

    proto: onnx.NodeProto
    name: str
    opset: int
    unread: frozenset[str] = frozenset()

    @property
    def op_type(self) -> str:
        """The operator, with its domain if that is not ONNX's own."""
        domain = self.proto.domain
        return self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}.{self.proto.op_type}"

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, ``""`` where an optional one is left out."""
        return list(self.proto.input)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, ``""`` where an optional one is left out or not read."""
        return ["" if name in self.unread else name for name in self.proto.output]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name; tensors as numpy arrays, texts as str.

        Raises
        ------
        ModelError
            If an attribute is damaged.
        """
        decoded: dict[str, Any] = {}
        for attribute in self.proto.attribute:
            try:
                value = onnx.helper.get_attribute_value(attribute)
                if isinstance(value, onnx.TensorProto):
                    value = read_tensor(value)
                decoded[attribute.name] = value.decode() if isinstance(value, bytes) else value
            except (ValueError, TypeError, KeyError) as error:
                raise ModelError(
                    f"node {self.name!r} ({self.op_type}): attribute {attribute.name!r} cannot be "
                    f"read, the file is damaged: {error}"
                ) from None
        return decoded

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Return a floating-point attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """Return an attribute that is a list of integers, by default empty."""
        values = self.attributes.get(name)
        return (default or []) if values is None else [int(value) for value in values]

    def selected(self, *names: str) -> dict[str, Any]:
        """Return those attributes of some names that the node has, empty lists excepted."""
        found = self.attributes
        return {name: found[name] for name in names if found.get(name) not in (None, [])}

    def constant_value(self) -> Array | None:
        """Return the value of a ``Constant`` node as an array, None for any other node.

        Raises
        ------
        UnsupportedNodeError
            If the constant is sparse or a text.
        """
        if self.op_type != "Constant":
            return None
        kinds = {
            "value_float": "float32",
            "value_floats": "float32",
            "value_int": "int64",
            "value_ints": "int64",
        }
        for name, value in self.attributes.items():
            if name == "value" and isinstance(value, np.ndarray):
                return value
            if name in kinds:
                return np.asarray(value, kinds[name])
        raise UnsupportedNodeError("its constant is not a plain tensor")
