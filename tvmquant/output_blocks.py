"""The parts of an output that a concat joins, found in the graph by walking back from the output.

Reshapes, transposes and functions of single values (a sigmoid of what was joined) are followed;
where a part is a concat itself, its parts are taken instead, as long as they are few.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tvmquant.graph import Graph

Array = NDArray[Any]

# More parts than a person reads; a concat that would lead to more is taken as a whole.
MAX_BLOCKS = 24


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of an output.

    Parameters
    ----------
    name : str
        Of the ONNX node that computes it.
    where : slice or array of int
        Its values among those of one item, in the order of memory.
    size : int
        Values of one item of the whole output.
    """

    name: str
    where: slice | NDArray[np.int64]
    size: int

    def of(self, output: Array) -> Array:
        """Return the block's values in an output of any number of items."""
        return output.reshape(-1, self.size)[:, self.where]


def find_blocks(graph: Graph) -> list[list[Block]]:
    """Return the parts of each output of a float graph; none of an output that is no joint.

    Parameters
    ----------
    graph : Graph
        Level L0, as imported.
    """
    from tvm import relax

    from tvmquant.ir.rewriter import bindings_of

    function = graph.main
    values = dict(bindings_of(function))
    body = function.body.body
    outputs = list(body.fields) if isinstance(body, relax.Tuple) else [body]
    batch = graph.fixed_batch()
    return [_Walk(values, batch).blocks(output) for output in outputs]


class _Walk:
    """From one output back to what it joins."""

    def __init__(self, values: dict[Any, Any], batch: int | None) -> None:
        self._values = values
        self._batch = batch

    def blocks(self, output: Any) -> list[Block]:
        shape = self._shape(output)
        if shape is None or self._joint(output) is None:
            return []
        size = math.prod(shape)
        found = [(output, np.arange(size).reshape(shape))]
        position = 0
        while position < len(found):
            parts = self._parts(*found[position])
            if not parts or len(found) - 1 + len(parts) > MAX_BLOCKS:
                position += 1
            else:
                found[position : position + 1] = parts
        if len(found) == 1:
            return []
        return [Block(self._name(var), _where(places), size) for var, places in found]

    def _joint(self, var: Any) -> Any:
        """Return the concat that a value is, but for its shape and functions of single values."""
        from tvm import relax

        from tvmquant.ir import quantized_ops as qop

        value = self._values.get(var)
        while value is not None:
            if isinstance(value, relax.Var):
                value = self._values.get(value)
            elif qop.is_call(value, "relax.concat"):
                return value
            elif isinstance(value, relax.Call) and self._followed(value) is not None:
                value = self._values.get(self._followed(value))
            else:
                return None
        return None

    def _parts(self, var: Any, places: Array) -> list[tuple[Any, Array]]:
        """Return the inputs of the concat that a value is, each with where it comes to lie."""
        from tvm import relax

        from tvmquant.ir import quantized_ops as qop

        if self._joint(var) is None:
            return []
        while True:
            value = self._values[var]
            if isinstance(value, relax.Var):
                var = value
                continue
            if qop.is_call(value, "relax.concat"):
                break
            operand = self._followed(value)
            if qop.is_call(value, "relax.permute_dims"):
                axes = value.attrs.axes
                order = None if axes is None else [int(axis) for axis in axes]
                places = places.transpose(None if order is None else np.argsort(order))
            else:
                places = places.reshape(self._shape(operand) or ())
            var = operand
        fields = list(value.args[0].fields)
        axis = int(value.attrs.axis) % places.ndim
        if axis == 0 or len(fields) < 2:
            return []
        extents = [(self._shape(field) or ())[axis] for field in fields]
        split = np.split(places, np.cumsum(extents)[:-1], axis)
        return list(zip(fields, split, strict=True))

    def _followed(self, call: Any) -> Any:
        """Return the operand of a call that keeps the operand's values, or each in its place."""
        from tvmquant.ir import quantized_ops as qop
        from tvmquant.ir.rewriter import used_vars
        from tvmquant.passes.elementwise import ELEMENTWISE
        from tvmquant.passes.region_operators import RESHAPES

        if not qop.is_call(call, *RESHAPES, *ELEMENTWISE):
            return None
        operands = list(used_vars(call))
        if len(operands) != 1:
            return None
        mine, theirs = self._shape(call), self._shape(operands[0])
        if mine is None or theirs is None or math.prod(mine) != math.prod(theirs):
            return None
        return operands[0]

    def _shape(self, expr: Any) -> tuple[int, ...] | None:
        """Return a shape with one item for the batch; None where it is not known."""
        from tvm import relax, tirx

        if not isinstance(expr.ty, relax.TensorType) or expr.ty.shape is None:
            return None
        extents: list[int] = []
        for extent in expr.ty.shape.values:
            if isinstance(extent, tirx.IntImm):
                extents.append(int(extent.value))
            elif isinstance(extent, tirx.Var):
                extents.append(1)
            elif isinstance(extent, tirx.Mul) and isinstance(extent.b, tirx.IntImm):
                extents.append(int(extent.b.value))
            else:
                return None
        if self._batch is not None and extents and extents[0] % self._batch == 0:
            extents[0] //= self._batch
        return tuple(extents)

    def _name(self, var: Any) -> str:
        from tvm import relax

        from tvmquant.graph import layer_name

        value = self._values.get(var)
        name = layer_name(value) if isinstance(value, relax.Call) else ""
        if not name and isinstance(value, relax.TupleGetItem):
            source = self._values.get(value.tuple_value)
            name = layer_name(source) if isinstance(source, relax.Call) else ""
            name = f"{name}[{value.index}]" if name else ""
        return name or str(getattr(var, "name", "a constant"))


def _where(places: Array) -> slice | NDArray[np.int64]:
    """Return places as a slice where they follow each other."""
    flat = np.sort(places.reshape(-1))
    if flat[-1] - flat[0] + 1 == flat.size:
        return slice(int(flat[0]), int(flat[-1]) + 1)
    return flat
