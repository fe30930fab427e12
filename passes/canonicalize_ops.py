"""Write each operator in the one form that the later passes know (L0).

Before / After, ``c`` being constants and ``C`` constants per channel::

    f(c1, c2)                              ->  c              computed in float64
    c + x, c * x                           ->  x + c, x * c
    x - c, c - x, x / c                    ->  x + (-c), x * (-1) + c, x * (1 / c)
    x / x, x / f(exp(y))                   ->  x * 0 + 1, x * (1 / f(exp(y)))
    where(c, x, y)                         ->  x * c + y * (1 - c)     c known, no y that excludes
    maximum(x, c), minimum(x, c)           ->  clip(x, c, inf), clip(x, -inf, c)
    clip(clip(x, a, b), c, d)              ->  clip(x, max(a, c), min(b, d)), so clamped
    clip(x, 0, inf)                        ->  relu(x)
    flatten(x), squeeze(x), expand_dims(x) ->  reshape(x, shape)
    reshape(reshape(x, s), t)              ->  reshape(x, t)
    mean(x, [-1, -2] or one) of rank 4     ->  reshape(mean(x, [2, 3], keepdims=True), shape)
    avg_pool2d(x), one unpadded window     ->  mean(x, [2, 3], keepdims=True)
    conv2d(pad(x, p), w, padding=q)        ->  conv2d(x, w, padding=p + q)        zeros only
    matmul(x, v), a vector of constants    ->  reshape(matmul(x, reshape(v, (K, 1))), shape)
    max_pool2d(pad(x, p), padding=q)       ->  max_pool2d(x, padding=p + q)       if no maximum
    x + y, x - y, x * y, x / y of two ranks -> the lower one reshaped with leading extents of 1;
                                               so with the greater or lesser of two tensors
    permute_dims(permute_dims(x, p), q)    ->  permute_dims(x, p[q])
    x + 0, x * 1, dropout(x)[0], reshape(x, shape of x), clip(x, -inf, inf), concat([x]),
    astype(x, its own type), permute_dims(x, [0, 1, ...]), pad(x, 0)              ->  x

Guarantees that an addition or multiplication has its constant second, and that ``subtract`` and
``divide`` are left only between two tensors, or for ``c / x`` and ``x / 0``. Clips and pads merge
only where nothing else reads the tensor in between. Merging arithmetic per channel is
`FoldBatchNorm`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses, used_vars
from tvmquant.passes.elementwise import BINARY, SELECT, UNARY, evaluate, scalar_bound

ARITHMETIC = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")
RESHAPES = ("relax.reshape", "relax.flatten", "relax.nn.batch_flatten", "relax.squeeze",
            "relax.expand_dims")  # fmt: skip
CLIPS = ("relax.clip", "relax.nn.relu")
# exporters that mean "no value" write minus infinity, the least float32, or some such number
LEAST = -1e30
# as far from 0 is what exporters write for "leave this out"
FAR = 1e3


class _Canonicalizer(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        # (operand, low, high) of each clip, those before it that merge into it included
        self.clips: dict[relax.Var, tuple[relax.Var, float, float]] = {}
        self.handlers: dict[str, Callable[[relax.Var, relax.Call], relax.Expr | None]] = {
            **dict.fromkeys(ARITHMETIC, self._arithmetic),
            **dict.fromkeys(RESHAPES, self._reshape),
            **dict.fromkeys(CLIPS, self._clip),
            "relax.maximum": self._clip,
            "relax.minimum": self._clip,
            "relax.mean": self._mean,
            "relax.nn.avg_pool2d": self._avg_pool2d,
            "relax.nn.conv2d": self._conv2d,
            "relax.matmul": self._matmul,
            "relax.nn.max_pool2d": self._max_pool2d,
            "relax.nn.pad": self._pad,
            "relax.concat": self._concat,
            "relax.astype": self._astype,
            "relax.permute_dims": self._permute_dims,
            SELECT: self._choose,
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if isinstance(value, relax.TupleGetItem):
            return self._tuple_item(value)
        if not isinstance(value, relax.Call):
            return None
        folded = self._fold_constants(var, value)
        if folded is not None:
            return folded
        handler = self.handlers.get(value.op.name)
        new = handler(var, value) if handler else None
        return _at(new, value.span)

    def source(self, operand: relax.Expr, *names: str) -> relax.Call | None:
        """Return the call that made an operand, if it is one of ``names`` read only here."""
        call = self.producer.get(operand) if isinstance(operand, relax.Var) else None
        return call if qop.is_call(call, *names) and self.uses[operand] == 1 else None

    # -- constants ------------------------------------------------------------------------------

    def _fold_constants(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        arrays = [qop.constant_array(self.lookup(a)) for a in call.args]
        tensors = [
            a for a in call.args if isinstance(a, relax.Var | tvm.ir.GenericConst | relax.Tuple)
        ]
        if not tensors or any(qop.constant_array(self.lookup(a)) is None for a in tensors):
            return None
        dtype = str(var.ty.dtype.dtype)
        name, x = call.op.name, arrays[0]
        if name in RESHAPES:
            shape = _static_shape(var)
            return qop.constant(x.reshape(shape)) if shape is not None else None
        if name == "relax.permute_dims":
            axes = call.attrs.axes
            return qop.constant(x.transpose(None if axes is None else [int(a) for a in axes]))
        if name == "relax.astype":
            return qop.constant(x.astype(dtype))
        if (name in UNARY or name in BINARY) and dtype.startswith("float"):
            operands = [a.astype(np.float64) for a in arrays]
            return qop.constant(np.asarray(evaluate(call, operands)).astype(dtype))
        return None

    # -- arithmetic -----------------------------------------------------------------------------

    def _arithmetic(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        operands = [self.lookup(a) for a in call.args]
        arrays = [qop.constant_array(a) for a in operands]
        if not str(var.ty.dtype.dtype).startswith("float"):
            return None
        if all(a is None for a in arrays):
            if qop.is_call(call, "relax.divide"):
                return self._quotient(call, operands)
            return self._of_one_rank(call, operands)
        constant_first = arrays[0] is not None
        x = operands[1 if constant_first else 0]
        constant = arrays[0 if constant_first else 1]
        name = call.op.name
        if name == "relax.divide" and (constant_first or np.any(constant == 0)):
            return None
        if name == "relax.divide":
            name, constant = (
                "relax.multiply",
                (1.0 / constant.astype(np.float64)).astype(constant.dtype),
            )
        if name == "relax.subtract" and constant_first:
            # of the same shape: constants of several numbers begin a region, one is a function
            minus_one = qop.constant(np.full(constant.shape, -1, constant.dtype))
            x = self.emit(_at(relax.op.multiply(x, minus_one), call.span))
        elif name == "relax.subtract":
            constant = -constant
        neutral = 1 if name == "relax.multiply" else 0
        if np.all(constant == neutral) and _same_type(var, x):
            return x
        combine = relax.op.multiply if name == "relax.multiply" else relax.op.add
        return combine(x, qop.constant(constant))

    def _quotient(self, call: relax.Call, operands: list[relax.Expr]) -> relax.Expr | None:
        """Divide a tensor by itself, or by what spans so wide a range that its inverse is better.

        What was rounded to 0 is not to be divided by.
        """
        x, divisor = operands
        if x.same_as(divisor):
            zeros = self.emit(_at(relax.op.multiply(x, qop.constant(np.float32(0))), call.span))
            return relax.op.add(zeros, qop.constant(np.float32(1)))
        if self._is_exponential(call.args[1]):
            inverse = relax.op.divide(qop.constant(np.float32(1)), divisor)
            inverse = self.emit(_at(inverse, call.span))
            product = relax.op.multiply(x, inverse)
            return self._of_one_rank(product, [x, inverse]) or product
        return self._of_one_rank(call, operands)

    def _is_exponential(self, operand: relax.Expr) -> bool:
        """Whether a tensor is a function of an exponential."""
        made = self.source(operand, *UNARY, *BINARY)
        while made is not None and not qop.is_call(made, "relax.exp"):
            read = used_vars(made)
            made = self.source(read[0], *UNARY, *BINARY) if len(read) == 1 else None
        return made is not None

    def _of_one_rank(self, call: relax.Call, operands: list[relax.Expr]) -> relax.Expr | None:
        """Write out the axes that broadcasting adds to one of two tensors."""
        shapes = [list(x.ty.shape.values) for x in operands]
        rank = max(map(len, shapes))
        if all(len(shape) == rank for shape in shapes):
            return None
        wide = []
        for x, shape in zip(operands, shapes, strict=True):
            array, extents = qop.constant_array(x), [1] * (rank - len(shape)) + shape
            if array is not None:
                x = qop.constant(array.reshape([int(extent) for extent in extents]))
            elif len(shape) < rank:
                x = self.emit(_at(relax.op.reshape(x, extents), call.span))
            wide.append(x)
        return relax.Call(call.op, wide, call.attrs, call.ty_args)

    def _clip(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        bounds = self._bounds(call)
        if not str(var.ty.dtype.dtype).startswith("float"):
            return None
        if bounds is None:
            return self._of_one_rank(call, [self.lookup(operand) for operand in call.args])
        operand, low, high = bounds
        if operand in self.clips and self.uses[operand] == 1:
            operand, inner_low, inner_high = self.clips[operand]
            low, high = min(max(inner_low, low), high), max(min(inner_high, high), low)
        self.clips[var] = operand, low, high
        x = self.lookup(operand)
        if (low, high) == (-math.inf, math.inf):
            return x
        return (
            relax.op.nn.relu(x) if (low, high) == (0.0, math.inf) else relax.op.clip(x, low, high)
        )

    def _bounds(self, call: relax.Call) -> tuple[relax.Var, float, float] | None:
        """Return (operand, low, high) of what clips at constants."""
        if qop.is_call(call, "relax.nn.relu"):
            return call.args[0], 0.0, math.inf
        if qop.is_call(call, "relax.clip"):
            return call.args[0], scalar_bound(call.args[1]), scalar_bound(call.args[2])
        arrays = [qop.constant_array(self.lookup(a)) for a in call.args]
        index = 0 if arrays[0] is not None else 1
        if arrays[index] is None or arrays[index].size != 1:
            return None
        operand, bound = call.args[1 - index], float(arrays[index].reshape(()))
        if arrays[index].ndim > len(operand.ty.shape.values):
            return None
        at_least = qop.is_call(call, "relax.maximum")
        return (operand, bound, math.inf) if at_least else (operand, -math.inf, bound)

    def _choose(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        """Mix two tensors, or a tensor and numbers, by a mask that is known.

        Numbers so low that they exclude what they replace (from a softmax) stay what they are.
        """
        mask, *values = (qop.constant_array(self.lookup(a)) for a in call.args)
        far = any(v is not None and not np.abs(v).max(initial=0) < FAR for v in values)
        if mask is None or far or not str(var.ty.dtype.dtype).startswith("float"):
            return None
        terms = []
        for share, operand, array in zip((mask, ~mask), call.args[1:], values, strict=True):
            factor = share.astype(np.float32)
            if array is not None:
                terms.append(qop.constant(np.asarray(array * factor, np.float32)))
                continue
            product = relax.op.multiply(self.lookup(operand), qop.constant(factor))
            terms.append(self.emit(_at(product, call.span)))
        variable = [t for t in terms if isinstance(t, relax.Var)]
        if len(variable) == 1 and not any(map(_is_nonzero, terms)):
            return variable[0] if _same_type(var, variable[0]) else None
        return relax.op.add(*sorted(terms, key=lambda t: not isinstance(t, relax.Var)))

    # -- shapes ---------------------------------------------------------------------------------

    def _reshape(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        x = self.lookup(call.args[0])
        made = self.builder.lookup_binding(x)
        if qop.is_call(made, "relax.reshape"):
            x = made.args[0]
        return x if _same_type(var, x) else relax.op.reshape(x, var.ty.shape)

    def _mean(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        rank = len(call.args[0].ty.shape.values)
        given = range(rank) if call.attrs.axis is None else call.attrs.axis
        axes = sorted(int(a) % rank for a in given)
        if rank != 4 or axes not in ([2], [3], [2, 3]):
            return None
        pooled = relax.op.mean(self.lookup(call.args[0]), axes, keepdims=True)
        if bool(call.attrs.keepdims):
            return pooled
        return relax.op.reshape(self.emit(_at(pooled, call.span), "pooled"), var.ty.shape)

    def _avg_pool2d(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        window = [int(v) for v in a.pool_size]
        extents = [_static(v) for v in call.args[0].ty.shape.values[2:]]
        plain = not any(int(v) for v in a.padding) and all(int(v) == 1 for v in a.dilation)
        if str(a.layout) != "NCHW" or not plain or window != extents:
            return None
        return relax.op.mean(self.lookup(call.args[0]), [2, 3], keepdims=True)

    def _conv2d(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        pad = self.source(call.args[0], "relax.nn.pad")
        if pad is None or str(call.attrs.data_layout) != "NCHW":
            return None
        widths = [int(v) for v in pad.attrs.pad_width]
        zeros = str(pad.attrs.pad_mode) == "constant" and float(pad.attrs.pad_value) == 0.0
        if not zeros or any(widths[:4]) or min(widths) < 0:
            return None
        top, bottom, left, right = widths[4:]
        a = call.attrs
        padding = [int(p) + w for p, w in zip(a.padding, (top, left, bottom, right), strict=True)]
        return relax.op.nn.conv2d(
            self.lookup(pad.args[0]), self.lookup(call.args[1]), a.strides, padding, a.dilation,
            a.groups, a.data_layout, a.kernel_layout, a.out_layout, a.out_dtype or None,
        )  # fmt: skip

    def _matmul(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        x, weight = self.lookup(call.args[0]), qop.constant_array(self.lookup(call.args[1]))
        if weight is None or weight.ndim != 1 or len(x.ty.shape.values) < 2:
            return None
        product = relax.op.matmul(x, qop.constant(weight[:, None]), call.attrs.out_dtype)
        return relax.op.reshape(self.emit(_at(product, call.span)), var.ty.shape)

    def _max_pool2d(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        """Leave out padding that is no greater than anything it is compared with."""
        pad, a = self.source(call.args[0], "relax.nn.pad"), call.attrs
        if pad is None or str(a.layout) != "NCHW" or str(pad.attrs.pad_mode) != "constant":
            return None
        widths = [int(v) for v in pad.attrs.pad_width]
        if any(widths[:4]) or min(widths) < 0:
            return None
        if float(pad.attrs.pad_value) > self._lower_bound(pad.args[0]):
            return None
        top, bottom, left, right = widths[4:]
        padding = [int(p) + w for p, w in zip(a.padding, (top, left, bottom, right), strict=True)]
        reach = [(int(k) - 1) * int(d) + 1 for k, d in zip(a.pool_size, a.dilation, strict=True)]
        if any(width >= reach[side % 2] for side, width in enumerate(padding)):
            return None  # a window would see no element at all
        return relax.op.nn.max_pool2d(
            self.lookup(pad.args[0]), a.pool_size, a.strides, padding, a.dilation,
            bool(a.ceil_mode), layout="NCHW",
        )  # fmt: skip

    def _lower_bound(self, operand: relax.Expr) -> float:
        """Return what no value of a tensor falls below."""
        made = self.producer.get(operand) if isinstance(operand, relax.Var) else None
        bounds = self._bounds(made) if qop.is_call(made, *CLIPS) else None
        return LEAST if bounds is None else max(bounds[1], LEAST)

    # -- what does nothing ----------------------------------------------------------------------

    def _tuple_item(self, item: relax.TupleGetItem) -> relax.Expr | None:
        call = self.producer.get(item.tuple_value)
        if item.index == 0 and qop.is_call(call, "relax.nn.dropout"):
            return self.lookup(call.args[0])
        return None

    def _pad(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        return None if any(int(v) for v in call.attrs.pad_width) else self.lookup(call.args[0])

    def _concat(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        fields: Any = getattr(call.args[0], "fields", ())
        return self.lookup(fields[0]) if len(fields) == 1 else None

    def _astype(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        return self.lookup(call.args[0]) if _same_type(var, call.args[0]) else None

    def _permute_dims(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        x, axes = self.lookup(call.args[0]), _axes(call)
        made = self.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
        if qop.is_call(made, "relax.permute_dims"):
            before = _axes(made)
            x, axes = made.args[0], [before[a] for a in axes]
        if axes == sorted(axes):
            return x
        return relax.op.permute_dims(x, axes)


def _at(expr: relax.Expr | None, span: tvm.ir.Span) -> relax.Expr | None:
    if not isinstance(expr, relax.Call):
        return expr
    return relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, span)


def _is_nonzero(expr: relax.Expr) -> bool:
    """Whether an expression is a constant that is not 0 everywhere."""
    array = qop.constant_array(expr)
    return array is not None and bool(np.any(array))


def _axes(call: relax.Call) -> list[int]:
    rank = len(call.args[0].ty.shape.values)
    given = range(rank - 1, -1, -1) if call.attrs.axes is None else call.attrs.axes
    return [int(a) % rank for a in given]


def _same_type(left: relax.Expr, right: relax.Expr) -> bool:
    return bool(left.ty == right.ty)


def _static(extent: Any) -> int | None:
    return int(extent) if isinstance(extent, int | tvm.tirx.IntImm) else None


def _static_shape(var: relax.Var) -> list[int] | None:
    extents = [_static(v) for v in var.ty.shape.values]
    return None if any(v is None for v in extents) else [v for v in extents if v is not None]


@tvm.ir.transform.module_pass(opt_level=0, name="CanonicalizeOps")
class CanonicalizeOps:
    """Bring a float graph into canonical form (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the canonical module."""
        return _Canonicalizer(module).rewrite()
