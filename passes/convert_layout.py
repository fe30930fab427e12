"""Lay every four-dimensional integer tensor out as NHWC and every weight as OHWI (L2).

Before::

    acc = qconv2d(x, w, bias) {layout: "NCHW"}

After::

    x_nhwc = permute_dims(x, [0, 2, 3, 1]); acc = qconv2d(x_nhwc, w_ohwi, bias) {layout: "NHWC"}

Channels last puts the bytes that one dot-product instruction multiplies side by side. Operators
with a layout or an axis are converted, of floats those behind layers whose input is rounded by its
range; anything else reads its operands back in NCHW; transposes
meet in pairs and vanish, so that normally one stays after the first quantize and one before the
last dequantize, where lowering fuses them with the border. Leaves a module that is channels last
already unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.passes.elementwise import BINARY, UNARY
from tvmquant.passes.region_operators import EXTREMES

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)
POINTWISE = (qop.REQUANTIZE, qop.TABLE, qop.QMULTIPLY)
# where axis i of NCHW stands in NHWC
AXIS_IN_NHWC = (0, 3, 1, 2)


class LayoutConverter(DataflowRewriter):
    """Convert the integer operators; a subclass that converts others adds to ``handlers``.

    Attributes
    ----------
    handlers : dict
        From an operator's name to what returns its NHWC form, or None to leave a call as it is.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.channels_last: dict[relax.Var, relax.Expr] = {}
        self.not_in_nchw: set[relax.Var] = set()
        # whose last axis already holds the channels: of what the model itself transposed
        self.last_already: set[relax.Var] = set()
        self.handlers: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            **dict.fromkeys((*UNARY, *BINARY, "relax.clip"), self._elementwise),
            qop.QCONV2D: self._windowed,
            qop.QCONV2D_TRANSPOSE: self._windowed,
            qop.POOL_SUM: self._windowed,
            dyn.DYNAMIC_QUANTIZE: self._windowed,
            dyn.DYNAMIC_DEQUANTIZE: self._windowed,
            **dict.fromkeys(POINTWISE, self._pointwise),
            "relax.concat": self._concat,
            "relax.nn.max_pool2d": self._max_pool,
            "relax.nn.avg_pool2d": self._avg_pool,
            "relax.mean": self._mean,
            "relax.max": self._reduce,
            "relax.min": self._reduce,
            **dict.fromkeys(EXTREMES, self._extreme),
            "relax.nn.pad": self._pad,
            "relax.strided_slice": self._slice,
            "relax.image.resize2d": self._resize,
            "relax.broadcast_to": self._broadcast,
            "relax.take": self._take,
            "relax.tile": self._tile,
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """Convert a call that has a handler; anything else reads NCHW."""
        if isinstance(value, relax.Var):
            return self.lookup(value)
        if qop.is_call(value, "relax.permute_dims") and self.converts(value.args[0]):
            return self._permute(var, value)
        if qop.is_call(value, qop.QDENSE, *POINTWISE) and self._is_last_already(value):
            self.last_already.add(var)
            return None
        if qop.is_call(value, qop.TABLE) and qop.is_float(value):
            return None  # integers are moved, not floats
        if qop.is_call(value, dyn.DYNAMIC_RANGE) and value.args[0] in self.channels_last:
            return self._own(value, {})  # in whatever order
        handler = self.handlers.get(value.op.name) if isinstance(value, relax.Call) else None
        if handler is None or not self._is_converted(value):
            return None
        new = handler(value)
        if new is None:
            return None
        return self._converted(var, _with_span(new, value))

    def converts(self, operand: relax.Expr) -> bool:
        """Whether an operator on ``operand`` is converted: floats where they are NHWC already."""
        tensor = operand.fields[0] if isinstance(operand, relax.Tuple) else operand
        return _is_rank4(tensor) and (not qop.is_float(tensor) or tensor in self.channels_last)

    def _is_converted(self, call: relax.Call) -> bool:
        if qop.is_call(call, dyn.DYNAMIC_QUANTIZE, dyn.DYNAMIC_DEQUANTIZE):
            of_image = str(qop.attributes(call)["layout"]) == "NCHW"  # not of a dense layer
            made = qop.is_call(call, dyn.DYNAMIC_DEQUANTIZE) or call.args[0] in self.channels_last
            return of_image and made
        read = call.args if qop.is_call(call, *BINARY) else call.args[:1]
        return any(self.converts(operand) for operand in read)

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        """Return an operand in NCHW, transposing back what is NHWC only."""
        if isinstance(expr, relax.Var) and expr in self.not_in_nchw:
            self.not_in_nchw.remove(expr)
            nhwc = self.channels_last[expr]
            self.replace(expr, self.emit(relax.op.permute_dims(nhwc, TO_NCHW), str(expr.name)))
        return super().lookup(expr)

    def nhwc(self, expr: relax.Expr) -> relax.Expr:
        """Return a four-dimensional operand in NHWC."""
        array = qop.constant_array(expr)
        if array is not None:
            return qop.constant(array.transpose(TO_NHWC)) if array.ndim == 4 else expr
        if len(expr.ty.shape.values) != 4:
            return self.lookup(expr)
        if expr not in self.channels_last:
            self.channels_last[expr] = self.emit(
                relax.op.permute_dims(self.lookup(expr), TO_NHWC), f"{expr.name}_nhwc"
            )
        return self.channels_last[expr]

    def _windowed(self, call: relax.Call) -> relax.Expr:
        return self._own(call, {"layout": "NHWC"})

    def _pointwise(self, call: relax.Call) -> relax.Expr:
        return self._own(call, {})

    def _own(self, call: relax.Call, changes: dict[str, Any]) -> relax.Expr:
        attrs = qop.attributes(call) | changes
        if attrs.get("axis", -1) >= 0:
            attrs["axis"] = AXIS_IN_NHWC[attrs["axis"]]
        args = [self.nhwc(a) for a in call.args]
        return qop.emit(call.op.name, args, attrs, call.span)

    def _concat(self, call: relax.Call) -> relax.Expr:
        fields = [self.nhwc(f) for f in call.args[0].fields]
        return relax.op.concat(fields, AXIS_IN_NHWC[int(call.attrs.axis) % 4])

    def _max_pool(self, call: relax.Call) -> relax.Expr:
        a = call.attrs
        return relax.op.nn.max_pool2d(
            self.nhwc(call.args[0]), a.pool_size, a.strides, a.padding, a.dilation,
            bool(a.ceil_mode), layout="NHWC",
        )  # fmt: skip

    def _avg_pool(self, call: relax.Call) -> relax.Expr:
        a = call.attrs
        return relax.op.nn.avg_pool2d(
            self.nhwc(call.args[0]), a.pool_size, a.strides, a.padding, a.dilation,
            bool(a.ceil_mode), bool(a.count_include_pad), layout="NHWC",
        )  # fmt: skip

    def _mean(self, call: relax.Call) -> relax.Expr | None:
        if not bool(call.attrs.keepdims) or call.attrs.axis is None:
            return None
        axes = [AXIS_IN_NHWC[int(axis) % 4] for axis in call.attrs.axis]
        return relax.op.mean(self.nhwc(call.args[0]), axes, keepdims=True)

    def _reduce(self, call: relax.Call) -> relax.Expr | None:
        if not bool(call.attrs.keepdims) or call.attrs.axis is None:
            return None
        axes = [AXIS_IN_NHWC[int(a) % 4] for a in call.attrs.axis]
        function = relax.op.max if qop.is_call(call, "relax.max") else relax.op.min
        return function(self.nhwc(call.args[0]), axes, keepdims=True)

    def _elementwise(self, call: relax.Call) -> relax.Expr | None:
        tensors = [a for a in call.args if isinstance(a.ty, relax.TensorType)]
        if any(len(a.ty.shape.values) not in (0, 4) for a in tensors):
            return None  # broadcast from a lower rank: its dimensions line up in NCHW alone
        args = [self.nhwc(a) if isinstance(a.ty, relax.TensorType) else a for a in call.args]
        return relax.Call(call.op, args, call.attrs, call.ty_args)

    def _extreme(self, call: relax.Call) -> relax.Expr:
        args = [self.nhwc(operand) for operand in call.args]
        return relax.Call(call.op, args, call.attrs, call.ty_args)

    def _pad(self, call: relax.Call) -> relax.Expr:
        pairs = np.asarray([int(v) for v in call.attrs.pad_width]).reshape(4, 2)
        widths = [int(v) for v in pairs[list(TO_NHWC)].reshape(-1)]
        mode, value = str(call.attrs.pad_mode), float(call.attrs.pad_value)
        return relax.op.nn.pad(self.nhwc(call.args[0]), widths, mode, value)

    def _slice(self, call: relax.Call) -> relax.Expr:
        x, axes, *rest = call.args
        moved = relax.Tuple(
            [relax.prim_value(AXIS_IN_NHWC[int(getattr(a, "value", a)) % 4]) for a in axes.fields]
        )
        return relax.Call(call.op, [self.nhwc(x), moved, *rest], call.attrs, call.ty_args)

    def _resize(self, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        return relax.op.image.resize2d(
            self.nhwc(call.args[0]), call.args[1], list(a.roi), "NHWC", str(a.method),
            str(a.coordinate_transformation_mode), str(a.rounding_method),
        )  # fmt: skip

    def _take(self, call: relax.Call) -> relax.Expr:
        axis = AXIS_IN_NHWC[int(call.attrs.axis) % 4]
        return relax.op.take(self.nhwc(call.args[0]), call.args[1], axis, str(call.attrs.mode))

    def _tile(self, call: relax.Call) -> relax.Expr:
        repeats = [int(times) for times in call.attrs.repeats]
        return relax.op.tile(self.nhwc(call.args[0]), [repeats[axis] for axis in TO_NHWC])

    def _broadcast(self, call: relax.Call) -> relax.Expr | None:
        shape = list(call.ty.shape.values)
        if not _is_rank4(call.args[0]):
            return None
        return relax.op.broadcast_to(self.nhwc(call.args[0]), [shape[i] for i in TO_NHWC])

    def _is_last_already(self, call: relax.Call) -> bool:
        dense = qop.is_call(call, qop.QDENSE)
        return dense or any(a in self.last_already for a in call.args if isinstance(a, relax.Var))

    def _permute(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        """Take a transpose of the model's own between the two layouts for a change of layout."""
        axes = tuple(int(a) % 4 for a in call.attrs.axes or (3, 2, 1, 0))
        if axes == TO_NHWC:
            self.last_already.add(var)
            return self.nhwc(call.args[0])
        if axes != TO_NCHW:
            return None
        self.channels_last[var] = self.lookup(call.args[0])
        self.not_in_nchw.add(var)
        return var

    def _converted(self, var: relax.Var, expr: relax.Expr) -> relax.Expr:
        """Remember an expression as the NHWC form of ``var``; NCHW is made when it is read."""
        self.channels_last[var] = self.emit(expr, str(var.name))
        self.not_in_nchw.add(var)
        return var


def _is_rank4(expr: relax.Expr) -> bool:
    shape = getattr(expr.ty, "shape", None)
    return shape is not None and len(shape.values) == 4


def _is_channels_last(value: relax.Expr) -> bool:
    """Whether an operator says that it reads NHWC."""
    if not isinstance(value, relax.Call) or value.attrs is None:
        return False
    own = str(getattr(value.op, "name", "")).startswith(qop.PREFIX)
    layout = qop.attributes(value).get("layout") if own else getattr(value.attrs, "layout", None)
    return str(layout) == "NHWC"


def _with_span(new: relax.Expr, old: relax.Call) -> relax.Expr:
    return relax.Call(new.op, new.args, new.attrs, new.ty_args, old.span)


@tvm.ir.transform.module_pass(opt_level=0, name="ConvertLayout")
class ConvertLayout:
    """Convert the integer part of a graph to NHWC (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the converted module."""
        if any(_is_channels_last(value) for _, value in bindings_of(module["main"])):
            return module
        return LayoutConverter(module).rewrite()
