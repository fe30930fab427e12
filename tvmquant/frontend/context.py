"""The state of one import: values seen so far, and how converters read and emit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, tirx

from tvmquant.frontend.dimensions import (
    Array,
    Batch,
    Dim,
    Shape,
    UnsupportedNodeError,
    check_size,
    is_symbolic,
    show,
)
from tvmquant.frontend.float_types import as_float32
from tvmquant.frontend.node import Node
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.ranged_tensor import RangedTensor, RangeParameter
from tvmquant.frontend.stored_integers import MOVERS, StoredIntegers
from tvmquant.ir.imported_quantizers import imported_weight
from tvmquant.ir.rewriter import with_span

# A numpy array is a constant or a shape; a Var a tensor computed at run time, a QuantizedTensor or
# RangedTensor one of integers of the file, the latter with RangeParameters; None left out.
Value: TypeAlias = Array | relax.Var | QuantizedTensor | RangedTensor | RangeParameter | None


class NonFiniteError(UnsupportedNodeError):
    """A weight holds NaN or infinity."""


class Context:
    """What a converter may use.

    Parameters
    ----------
    builder : relax.BlockBuilder
        Receives the calls, inside the dataflow block of ``main``.
    batch : tirx.Var or None
        The symbolic batch, None if the batch is a number.
    assumed_batch : int or None
        The batch that the file fixes where the import makes it symbolic. Whatever mixes the samples
        of a batch is then rejected, and the import starts again with the fixed batch.
    requantize : bool
        Whether the scales of a quantized model are left out.
    own : bool
        Whether the model is an export of this project, whose networks round in their own way.
    """

    def __init__(
        self,
        builder: relax.BlockBuilder,
        batch: tirx.Var | None,
        assumed_batch: int | None,
        *,
        requantize: bool = False,
        own: bool = False,
    ) -> None:
        self.requantize = requantize
        self.own = own
        self.builder = builder
        self.batch = batch
        self.assumed_batch = assumed_batch
        self.values: dict[str, Value] = {"": None}
        # of constants that the file stores as integers: these
        self.stored: dict[str, StoredIntegers] = {}
        # of tensors that the file quantizes: what has been made of them
        self.quantized: dict[str, list[QuantizedTensor]] = {}
        self.node: Node

    # Reading inputs of the current node

    def value(self, index: int) -> Value:
        """Return an input of the node, None if it is left out."""
        names = self.node.inputs
        return self.values[names[index]] if index < len(names) else None

    def tensor(self, index: int) -> relax.Expr:
        """Return an input as an expression; constants are checked and embedded."""
        value = self.value(index)
        if value is None:
            raise UnsupportedNodeError(f"input {index} is missing")
        if isinstance(value, np.ndarray):
            return self.embed(self.weight(index))
        if isinstance(value, QuantizedTensor | RangedTensor):
            return value.real if self.moves_integers() else self.emit(value.integers())
        if isinstance(value, RangeParameter):
            return self.emit(value.value())
        if 0 in self.shape(value):
            raise UnsupportedNodeError(f"it reads a tensor of shape {show(self.shape(value))}")
        return value

    def moves_integers(self) -> bool:
        """Whether the node moves integers of the file, and gives them the scale that they had."""
        values = [self.values[name] for name in self.node.inputs]
        tensors = [v for v in values if not isinstance(v, np.ndarray) and v is not None]
        known = [
            v for v in tensors
            if isinstance(v, RangedTensor) or (isinstance(v, QuantizedTensor) and v.axis < 0)
        ]  # fmt: skip
        if self.node.op_type in ("Cast", "CastLike") or not known or len(known) < len(tensors):
            return False
        return self.node.op_type in MOVERS and all(known[0].is_like(v) for v in known)

    def layer_weight(
        self,
        index: int,
        weight: relax.Expr,
        axis: int,
        *,
        groups: int = 1,
        arranged: Callable[[Array], Array] | None = None,
    ) -> relax.Expr:
        """Return the weight of a layer, quantized as the file has it if it stores integers.

        Parameters
        ----------
        index : int
            Input of the node that is the weight.
        weight : relax.Expr
            The same as the layer reads it.
        axis : int
            Of its output channels.
        groups : int
        arranged : callable, optional
            What the layer reads of the input, up to its shape: its transpose, say.
        """
        stored = self.stored.get(self.node.inputs[index])
        if stored is None or self.requantize or not isinstance(weight, tvm.ir.GenericConst):
            return weight
        shape = tuple(int(v) for v in weight.ty.shape.values)
        if arranged is not None:
            stored = stored.mapped(arranged)
        stored = stored.mapped(lambda array: array.reshape(shape))
        channels, multiplier = stored.along(axis), None
        if channels is None:
            blocks = stored.grouped(axis)
            if blocks is None:
                return weight
            scale, multiplier = blocks
            channels = scale, np.zeros(scale.shape, np.int32)
        scale, zero_point = channels
        middle = 128 if np.any(stored.levels > 127) else 0
        call = imported_weight(
            stored.levels - stored.zero_point, scale, zero_point - middle, axis=axis,
            groups=groups, name=self.node.name, multiplier=multiplier, group=stored.block,
        )  # fmt: skip
        return self.emit(call)

    def weight(self, index: int) -> Array:
        """Return a constant input as an array, floating-point ones as float32.

        Raises
        ------
        UnsupportedNodeError
            If the input is not a constant, is empty or is not finite.
        """
        array = self.optional_constant(index)
        if array is None:
            raise UnsupportedNodeError(f"input {index} is missing")
        name = self.node.inputs[index]
        if array.size == 0:
            raise UnsupportedNodeError(f"constant {name!r} has shape {array.shape}: no elements")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "an infinite value"
            raise NonFiniteError(f"constant {name!r} holds {kind}")
        return array

    def optional_constant(self, index: int) -> Array | None:
        """Return a constant input as an array of any content, None if it is left out."""
        value = self.value(index)
        if value is None:
            return None
        if not isinstance(value, np.ndarray):
            raise UnsupportedNodeError(f"input {index} must be a constant, it is computed")
        if is_symbolic(value):
            raise UnsupportedNodeError(f"input {index} depends on the batch size")
        return as_float32(value)

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """Return integers given as input ``index``, or in older opsets as an attribute."""
        array = self.optional_constant(index)
        if array is not None:
            return [int(item) for item in array.ravel()]
        return self.node.integers(attribute) if attribute in self.node.attributes else None

    def is_constant(self, index: int) -> bool:
        """Whether an input is given and constant."""
        return isinstance(self.value(index), np.ndarray)

    # Shapes

    def shape(self, tensor: relax.Expr) -> Shape:
        """Return the shape of an emitted expression."""
        dims = tensor.ty.shape
        if dims is None:
            raise UnsupportedNodeError("the shape of its input is not known")
        return tuple(self._dimension(dim) for dim in list(dims.values))

    def _dimension(self, dim: Any) -> Dim:
        if isinstance(dim, tirx.IntImm):
            return int(dim.value)
        if self.batch is not None and dim.same_as(self.batch):
            return Batch()
        if isinstance(dim, tirx.Mul) and isinstance(dim.b, tirx.IntImm):
            inner = self._dimension(dim.a)
            if isinstance(inner, Batch):
                return inner * int(dim.b.value)
        raise UnsupportedNodeError(f"a dimension of its input is {dim}")

    def spatial(self, tensor: relax.Expr) -> tuple[int, int]:
        """Return height and width of an NCHW tensor.

        Raises
        ------
        UnsupportedNodeError
            If the tensor is not 4-D, as are images and what `as_image` returns.
        """
        shape = self.shape(tensor)
        if len(shape) != 4:
            raise UnsupportedNodeError(
                f"its input is {len(shape)}-D, {show(shape)}; expected a signal (N, C, W) or an "
                "image (N, C, H, W)"
            )
        height, width = shape[2:]
        if isinstance(height, Batch) or isinstance(width, Batch):
            raise UnsupportedNodeError("its height or width depends on the batch size")
        return height, width

    def expression(self, shape: Sequence[Dim]) -> relax.ShapeExpr:
        """Return a shape as a Relax expression."""
        return relax.ShapeExpr(
            [
                (self.batch if dim.factor == 1 else self.batch * tirx.IntImm("int64", dim.factor))
                if isinstance(dim, Batch)
                else dim
                for dim in shape
            ]
        )

    def keep_batch(self, shape: Shape, axes: Sequence[int]) -> None:
        """Reject work along the batch axis where the batch is only assumed to be symbolic."""
        if self.assumed_batch is not None and any(isinstance(shape[axis], Batch) for axis in axes):
            raise UnsupportedNodeError("it works along the batch axis")

    def axis(self, rank: int, axis: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise UnsupportedNodeError(f"axis {axis} does not exist in a {rank}-D tensor")
        return axis % rank

    # Writing

    def embed(self, array: Array) -> tvm.ir.GenericConst:
        """Return an array as a constant of the graph."""
        return relax.const(np.asarray(array, order="C"), str(array.dtype))

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Append an expression under the node's name and return its result."""
        if isinstance(expr, relax.Call):
            expr = with_span(expr, self.node.name)
        result = self.builder.emit(expr)
        if isinstance(result.ty, relax.TensorType):
            check_size(self.shape(result))
        return result

    def as_image(self, tensor: relax.Expr) -> relax.Expr:
        """Return a signal (N, C, W) as an image (N, C, 1, W) of height 1, other tensors unchanged.

        What works on images is thereby written once; `KeepSignalsAsImages` removes the reshapes
        between two such operators.
        """
        shape = self.shape(tensor)
        if len(shape) != 3:
            return tensor
        if isinstance(tensor, tvm.ir.GenericConst):
            return self.embed(tensor.value.numpy()[:, :, None])
        return self.reshape(tensor, (*shape[:2], 1, shape[2]))

    def as_given(self, result: relax.Var, data: relax.Expr) -> relax.Var:
        """Return the result of `as_image` on ``data`` in the rank that ``data`` has."""
        if len(self.shape(data)) != 3:
            return result
        batch, channels, _, width = self.shape(result)
        return self.reshape(result, (batch, channels, width))

    def reshape(self, tensor: relax.Expr, shape: Shape) -> relax.Var:
        """Append a reshape, unless the tensor has that shape already."""
        if self.shape(tensor) == shape:
            return tensor
        return self.emit(relax.op.reshape(tensor, self.expression(shape)))
