"""The nodes of a model while they are being written in another form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from tvmquant.frontend.branches import read_names
from tvmquant.frontend.dialects.known_values import KnownValues
from tvmquant.frontend.dialects.value_types import rank_of, type_of
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node

# Of the nodes that are written here: the first with integers of 4 and 16 bits, and with blocks.
OPSET = 21


@dataclass(frozen=True)
class Integers:
    """A quantized tensor: real value ``(q - zero_point) * scale``.

    Parameters
    ----------
    name, scale, zero_point : str
        Names of values; a zero point that is left out, ``""``, is 0.
    axis : int
        Of scales and zero points that differ.
    block_size : int
        How many neighbours along the axis share a scale; 0 where all with one index do.
    """

    name: str
    scale: str
    zero_point: str = ""
    axis: int = field(default=0, kw_only=True)
    block_size: int = field(default=0, kw_only=True)


class Draft:
    """Nodes written so far, and what is known of the values they may read.

    Parameters
    ----------
    nodes : sequence of Node
        All that are to be written, in topological order.
    constants : mapping of str to array
    inputs : sequence of onnx.ValueInfoProto
        Of the model.
    outputs : sequence of str
        Values that are read afterwards.
    values, names : set of str
        Names of values and of nodes that are taken.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, Array],
        inputs: Iterable[onnx.ValueInfoProto],
        outputs: Sequence[str],
        values: set[str],
        names: set[str],
    ) -> None:
        self.nodes: list[Node] = []
        self.constants = dict(constants)
        self.done: set[str] = set()  # names of nodes that another one's rewriting took in
        self.known = KnownValues(self.constants)
        self.known.add(nodes)
        self._inputs = {value.name: value.type.tensor_type for value in inputs}
        self._values = values
        self._names = names
        self._dequantized: dict[Integers, str] = {}
        self._ranged: dict[str, Integers] = {}
        self._readers: dict[str, list[Node | None]] = {name: [None] for name in outputs}
        for node in nodes:
            for name in read_names(node.proto):
                self._readers.setdefault(name, []).append(node)

    # What is known

    def type_of(self, name: str) -> np.dtype[Any] | None:
        """Return the element type of a value, None where that takes more than looking at nodes."""
        return type_of(self.known, self._inputs, name)

    def rank_of(self, name: str) -> int | None:
        """Return the number of dimensions of a value, None where it is not known."""
        return rank_of(self.known, self._inputs, name)

    def only_reader(self, name: str) -> Node | None:
        """Return the node that reads a value, None if there are several or the value is output."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

    # Writing

    def keep(self, node: Node) -> None:
        """Append a node as it is."""
        self.nodes.append(node)

    def emit(
        self,
        op_type: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str = "",
        opset: int = OPSET,
        **attributes: Any,
    ) -> str:
        """Append a node of one of ONNX's operators, and return the name of its output.

        Parameters
        ----------
        op_type : str
        inputs : sequence of str
            Those left out at the end are dropped.
        name : str
            Of the node, made unique.
        output : str
            By default a new name.
        opset : int
        attributes
            Those that are None are left out.
        """
        name = self._free(name, self._names)
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        output = output or self.value(f"{name}_output")
        proto = onnx.helper.make_node(op_type, given, [output], name, **attributes)
        node = Node(proto, name, opset)
        self.nodes.append(node)
        self.known.add([node])
        return output

    def value(self, name: str) -> str:
        """Return a new name of a value."""
        return self._free(name, self._values)

    def constant(self, name: str, array: Array) -> str:
        """Add an initialiser under a name made unique, and return that name."""
        name = self.value(name)
        self.constants[name] = np.asarray(array)  # numpy makes scalars of arrays without dimensions
        return name

    def dequantize(self, tensor: Integers, name: str, *, output: str = "") -> str:
        """Return the real values of a tensor, written where they are asked for first.

        Parameters
        ----------
        tensor : Integers
        name : str
            What the tensor is to the node that is being written, such as ``conv/weight``.
        output : str
            Name of the real values, by default a new one; of a tensor that has been written now.
        """
        if tensor not in self._dequantized:
            matched = self.matched(tensor, name)
            self._dequantized[tensor] = self.emit(
                "DequantizeLinear",
                [matched.name, matched.scale, matched.zero_point],
                f"{name}/DequantizeLinear",
                output=output,
                axis=self._axis(matched),
                block_size=matched.block_size or None,
            )
        return self._dequantized[tensor]

    def quantize(self, real: str, tensor: Integers, name: str, like: str = "") -> None:
        """Write the integers of real values.

        Parameters
        ----------
        real : str
        tensor : Integers
            Its name is that of the result.
        name : str
            Of the node that is being written.
        like : str
            A value whose type the integers have where no zero point tells it.

        Raises
        ------
        UnsupportedNodeError
            If nothing tells their type.
        """
        tensor = self.matched(tensor, name)
        zero_point = tensor.zero_point
        if not zero_point:
            dtype = self.type_of(like)
            if dtype is None:
                raise UnsupportedNodeError(
                    "its output has no zero point, and its input is of a type that is not known; "
                    "give it a zero point of 0, which says the type"
                )
            known = self.known.array(tensor.scale)
            shape = () if known is None else known.shape
            zero_point = self.constant(f"{name}/zero_point", np.zeros(shape, dtype))
        self.emit(
            "QuantizeLinear",
            [real, tensor.scale, zero_point],
            f"{name}/QuantizeLinear",
            output=tensor.name,
            axis=self._axis(tensor),
        )

    def dynamically_quantized(self, real: str, name: str) -> Integers:
        """Return a tensor quantized by its range, written where that is asked for first."""
        if real not in self._ranged:
            name = self._free(f"{name}/DynamicQuantizeLinear", self._names)
            outputs = [self.value(f"{name}_{kind}") for kind in ("output", "scale", "zero_point")]
            proto = onnx.helper.make_node("DynamicQuantizeLinear", [real], outputs, name)
            node = Node(proto, name, OPSET)
            self.nodes.append(node)
            self.known.add([node])
            self._ranged[real] = Integers(*outputs)
        return self._ranged[real]

    def _axis(self, tensor: Integers) -> int | None:
        scale = self.known.array(tensor.scale)
        return None if scale is not None and scale.size == 1 else tensor.axis

    def matched(self, tensor: Integers, name: str) -> Integers:
        """Return a tensor with scales and zero points of one shape, where they are known.

        Dialects let one number stand beside many.

        Raises
        ------
        UnsupportedNodeError
            If one scale stands beside many zero points that are computed at run time.
        """
        scale = self.known.array(tensor.scale)
        zero_point = self.known.array(tensor.zero_point)
        if scale is None:
            return tensor
        if zero_point is None:
            if (self.rank_of(tensor.zero_point) or 0) > scale.ndim:
                raise UnsupportedNodeError(
                    f"its zero points {tensor.zero_point!r} are computed at run time, expected "
                    "constants beside one scale; store them in the file"
                )
            return tensor
        if scale.shape == zero_point.shape:
            return tensor
        if zero_point.size == 1:
            filled = np.full(scale.shape, zero_point.reshape(()))
            return replace(tensor, zero_point=self.constant(f"{name}/zero_point", filled))
        if scale.size == 1:
            filled = np.full(zero_point.shape, scale.reshape(()))
            return replace(tensor, scale=self.constant(f"{name}/scale", filled))
        return tensor

    @staticmethod
    def _free(name: str, taken: set[str]) -> str:
        free, suffix = name, 0
        while free in taken:
            suffix += 1
            free = f"{name}_{suffix}"
        taken.add(free)
        return free
