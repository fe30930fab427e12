"""What the function that writes an operator is given: its operands as values of the ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvmquant.export import shapes
from tvmquant.export.builder import OnnxBuilder
from tvmquant.ir import quantized_ops as qop

if TYPE_CHECKING:
    from tvmquant.export.network import NetworkWriter


@dataclass(frozen=True)
class CallWriter:
    """A call, and where what it becomes is appended.

    Parameters
    ----------
    network : NetworkWriter
    var : Var
        What the call is bound to.
    call : Call
    name : str
        Of the layer.
    """

    network: NetworkWriter
    var: relax.Var
    call: relax.Call
    name: str

    @property
    def builder(self) -> OnnxBuilder:
        """Takes the nodes."""
        return self.network.builder

    @property
    def opset(self) -> int:
        """The operator set that is written."""
        return self.builder.opset

    @property
    def attrs(self) -> Any:
        """Attributes of the call."""
        return self.call.attrs

    @property
    def rank(self) -> int:
        """Number of axes of the result."""
        return len(self.call.ty.shape.values)

    def rank_of(self, index: int) -> int:
        """Return the number of axes of an operand."""
        return len(self.call.args[index].ty.shape.values)

    def tensor(self, index: int) -> str:
        """Return the name of an operand."""
        return self.network.operand(self.var, self.call.args[index], self.name)

    def tensors(self) -> list[str]:
        """Return the names of all operands that are tensors, those of a tuple one by one."""
        fields = [
            field
            for arg in self.call.args
            for field in (arg.fields if isinstance(arg, relax.Tuple) else [arg])
        ]
        return [
            self.network.operand(self.var, field, self.name)
            for field in fields
            if isinstance(field.ty, relax.TensorType)
        ]

    def array(self, index: int) -> Any:
        """Return a constant operand as an array; None where it is none."""
        return qop.constant_array(self.call.args[index])

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node of the layer, and return the name of what it computes."""
        return self.builder.node(operator, inputs, self.name, **attributes)

    def constant(self, array: Any, role: str) -> str:
        """Return the name of a constant of the layer."""
        return self.builder.constant(array, f"{self.name}/{role}")

    def number(self, value: float) -> str:
        """Return the name of a float32 number."""
        return self.constant(np.float32(value), "number")

    def integers(self, values: Sequence[int], role: str) -> str:
        """Return the name of a vector of integers, such as axes."""
        return self.constant(np.asarray(values, np.int64), role)

    def reshaped(self, x: str, extents: Sequence[Any]) -> str:
        """Append a reshape to extents of which some may depend on the batch."""
        return self.node("Reshape", [x, shapes.reshape_target(self, extents)])


# Appends a call's nodes and returns the name of its result, or of each where it is a tuple.
Writer = Callable[[CallWriter], "str | tuple[str, ...]"]
