"""Compute on images of height 1 between operators that see a signal as an image (L0).

Before::

    a = reshape(conv2d(image, w), (N, C, W)); b = relu(a); y = conv2d(reshape(b, (N, C, 1, W)), v)

After::

    y = conv2d(relu(conv2d(image, w)), v)

Convolutions and pools of signals (N, C, W) are imported as those of images (N, C, 1, W), each
between two reshapes. What lies between them is elementwise, joins, cuts or averages signals, and
does the same to images; so the reshapes move down to where a signal is needed, if anywhere, and
an activation or an addition stays in the region of its layer. Requires and keeps canonical form
(`CanonicalizeOps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter
from tvmquant.passes.elementwise import ELEMENTWISE

# where axis i of a signal stands in the image
AXIS_OF_IMAGE = (0, 1, 3)
# and which of the image's are reduced where one of the signal's is
AXES_OF_IMAGE = ([0], [1], [2, 3])

REDUCTIONS = {
    "relax.mean": relax.op.mean,
    "relax.sum": relax.op.sum,
    "relax.max": relax.op.max,
    "relax.min": relax.op.min,
}


class _Raiser(DataflowRewriter):
    """Keep the image of every signal that has one; the signal itself is made when it is read."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.images: dict[relax.Var, relax.Expr] = {}
        self.not_as_signal: set[relax.Var] = set()
        self.handlers: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            **dict.fromkeys((*ELEMENTWISE, "relax.nn.prelu"), self._elementwise),
            "relax.concat": self._concat,
            "relax.strided_slice": self._slice,
            "relax.nn.pad": self._pad,
            **dict.fromkeys(REDUCTIONS, self._reduce),
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, "relax.reshape"):
            return self._reshape(var, value)
        handler = self.handlers.get(value.op.name) if isinstance(value, relax.Call) else None
        new = handler(value) if handler else None
        if new is None:
            return None
        image = self.emit(
            relax.Call(new.op, new.args, new.attrs, new.ty_args, value.span), str(var.name)
        )
        if len(image.ty.shape.values) == len(var.ty.shape.values):
            return image  # a reduction that drops what it reduces
        return self._keep(var, image)

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var) and expr in self.not_as_signal:
            self.not_as_signal.remove(expr)
            self.replace(expr, self.emit(relax.op.reshape(self.images[expr], expr.ty.shape)))
        return super().lookup(expr)

    def _keep(self, var: relax.Var, image: relax.Expr) -> relax.Var:
        self.images[var] = image
        self.not_as_signal.add(var)
        return var

    def _reshape(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        source = call.args[0]
        shape, wanted = _extents(source), _extents(var)
        if len(shape) == 4 and shape[2] == 1 and wanted == [*shape[:2], shape[3]]:
            return self._keep(var, self.lookup(source))
        if source in self.images and wanted == _extents(self.images[source]):
            return self.images[source]
        return None

    def _image(self, operand: relax.Expr) -> relax.Expr | None:
        """Return an operand of an elementwise operator as it lines up with images."""
        if operand in self.images:
            return self.images[operand]
        if not isinstance(operand.ty, relax.TensorType):
            return operand
        array = qop.constant_array(operand)
        rank = len(_extents(operand))
        if array is not None:
            return qop.constant(array[..., None, :]) if array.ndim > 1 else operand
        if rank != 3:
            return operand if rank < 2 else None
        batch, channels, width = operand.ty.shape.values
        return self.emit(relax.op.reshape(self.lookup(operand), (batch, channels, 1, width)))

    def _elementwise(self, call: relax.Call) -> relax.Call | None:
        if not any(operand in self.images for operand in call.args):
            return None
        if qop.is_call(call, "relax.nn.prelu"):  # its slopes lie along the axis of channels
            args = [self.images.get(call.args[0]), self.lookup(call.args[1])]
        else:
            args = [self._image(operand) for operand in call.args]
        return None if None in args else relax.Call(call.op, args, call.attrs, call.ty_args)

    def _concat(self, call: relax.Call) -> relax.Call | None:
        fields = call.args[0].fields
        if not any(field in self.images for field in fields):
            return None
        axis = AXIS_OF_IMAGE[int(call.attrs.axis) % 3]
        return relax.op.concat([self._image(field) for field in fields], axis)

    def _slice(self, call: relax.Call) -> relax.Call | None:
        x, axes, *rest = call.args
        if x not in self.images:
            return None
        moved = [
            relax.prim_value(AXIS_OF_IMAGE[int(getattr(a, "value", a)) % 3]) for a in axes.fields
        ]
        args = [self.images[x], relax.Tuple(moved), *rest]
        return relax.Call(call.op, args, call.attrs, call.ty_args)

    def _pad(self, call: relax.Call) -> relax.Call | None:
        if call.args[0] not in self.images:
            return None
        widths = [int(v) for v in call.attrs.pad_width]
        mode, value = str(call.attrs.pad_mode), float(call.attrs.pad_value)
        wide = [*widths[:4], 0, 0, *widths[4:]]
        return relax.op.nn.pad(self.images[call.args[0]], wide, mode, value)

    def _reduce(self, call: relax.Call) -> relax.Call | None:
        x, axes = call.args[0], call.attrs.axis
        if x not in self.images or axes is None:
            return None
        reduced, keep = sorted(int(axis) % 3 for axis in axes), bool(call.attrs.keepdims)
        if not keep and 2 not in reduced:
            return None  # neither a signal nor its image
        moved = [a for axis in reduced for a in AXES_OF_IMAGE[axis]]
        return REDUCTIONS[call.op.name](self.images[x], moved, keep)


def _extents(tensor: relax.Expr) -> list[int | str]:
    """Return the extents of a tensor, a symbolic batch as text, in which it equals itself."""
    shape: Any = tensor.ty.shape
    return [int(n) if isinstance(n, tvm.tirx.IntImm) else str(n) for n in shape.values]


@tvm.ir.transform.module_pass(opt_level=0, name="KeepSignalsAsImages")
class KeepSignalsAsImages:
    """Move the reshapes between signals and images down (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with signals kept as images."""
        return _Raiser(module).rewrite()
