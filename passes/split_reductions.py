"""Write sums and means over any axes as what has an integer form (L0).

Before, of images (N, C, H, W) and of rows (N, L, K)::

    mean(x, [1]), mean(x, [1, 2]);  sum(x, [2]), sum(x, [1])

After::

    conv2d(x, 1 / C), conv2d(mean(x, [2]), 1 / C);  matmul(x, 1), L * mean(image of x, [3])

Channels, and the last axis of what is no image, are summed by a contraction with equal weights: a
processor's dot products take what lies side by side, the weights absorb scales per channel, and
8 bits hold them exactly. Other axes are averaged as a window (`annotate_quantization`): those
between ``before`` and ``after`` others are the columns of the channels-last image
(N, before, axes, after). Each of these steps rounds to 8 bits.

What a root, a logarithm, a power or a quotient reads is left alone: small sums matter there, which
8 bits do not tell apart (`amplification`). So are sums of squares, which span too wide a range for
8 bits (1 dB less on ReduceSumSquare). Requires canonical form (`CanonicalizeOps`), and comes
after what recognizes normalizations by their means.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, used_vars
from tvmquant.passes.amplification import amplified
from tvmquant.passes.convert_layout import TO_NCHW, TO_NHWC

REDUCTIONS = ("relax.mean", "relax.sum")
# an accumulator of 32 bits holds as many products of 8 bits
MAX_PRODUCTS = 2**15
IMAGES = ("relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.nn.max_pool2d",
          "relax.nn.avg_pool2d", "relax.image.resize2d")  # fmt: skip
ROWS = ("relax.matmul", "relax.nn.layer_norm")


class _Splitter(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))
        self.amplified = amplified(self.function)
        self.rows = _channels_last(self.function)

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, *REDUCTIONS) or str(value.ty.dtype.dtype) != "float32":
            return None
        shape = list(value.args[0].ty.shape.values)
        given = range(len(shape)) if value.attrs.axis is None else value.attrs.axis
        axes = sorted(int(a) % len(shape) for a in given)
        if 0 in axes or not all(isinstance(n, tvm.tirx.IntImm) for n in shape[1:]):
            return None
        if var in self.amplified or self._is_square(value.args[0]):
            return None
        return _Reduction(self, value, [0, *map(int, shape[1:])]).result(axes, var)

    def _is_square(self, expr: relax.Expr) -> bool:
        """Whether a tensor holds squares."""
        made = self.producer.get(expr) if isinstance(expr, relax.Var) else None
        product = qop.is_call(made, "relax.multiply") and made.args[0].same_as(made.args[1])
        return product or qop.is_call(made, "relax.square")


class _Reduction:
    """The steps of one reduction, which all keep the axes that they reduce."""

    def __init__(self, splitter: _Splitter, call: relax.Call, shape: list[int]) -> None:
        self.splitter = splitter
        self.call = call
        self.batch = call.args[0].ty.shape.values[0]
        self.shape = shape
        self.x: relax.Expr = splitter.lookup(call.args[0])
        self.averages = qop.is_call(call, "relax.mean")

    def result(self, axes: list[int], var: relax.Var) -> relax.Expr | None:
        """Return what replaces the call, or None where it has no other form."""
        image = len(self.shape) == 4 and self.call.args[0] not in self.splitter.rows
        spatial = len(self.shape) == 4 and set(axes) <= {2, 3}
        if spatial and self.averages:
            return None
        channels = self.shape[1] if image else 1
        if channels > MAX_PRODUCTS or self._trailing(axes) > MAX_PRODUCTS:
            return None
        if image or spatial:
            self._window([a for a in axes if a > 1])
            if 1 in axes:
                weight = np.full((1, channels, 1, 1), self._weight(channels))
                self._emit(relax.op.nn.conv2d(self.x, qop.constant(weight.astype(np.float32))))
        else:
            for first, last in reversed(_runs(axes)):
                self._run(first, last + 1)
        return relax.op.reshape(self.x, var.ty.shape)

    def _trailing(self, axes: list[int]) -> int:
        first, last = _runs(axes)[-1]
        return math.prod(self.shape[first:]) if last == len(self.shape) - 1 else 1

    def _weight(self, count: int) -> float:
        return 1.0 / count if self.averages else 1.0

    def _emit(self, expr: relax.Call) -> None:
        named = relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, self.call.span)
        self.x = self.splitter.emit(named)

    def _window(self, axes: list[int]) -> None:
        """Average over the last axes of an image."""
        if not axes:
            return
        extents = list(self.x.ty.shape.values)
        self._emit(relax.op.mean(self.x, axes, keepdims=True))
        if not self.averages:
            count = math.prod(int(extents[axis]) for axis in axes)
            self._emit(relax.op.multiply(self.x, qop.constant(np.float32(count))))

    def _run(self, first: int, end: int) -> None:
        """Reduce axes ``first`` to ``end`` - 1."""
        before, after = math.prod(self.shape[1:first]), math.prod(self.shape[end:])
        count = math.prod(self.shape[first:end])
        if end == len(self.shape):
            self._emit(relax.op.reshape(self.x, [self.batch, *self.shape[1:first], count]))
            weight = np.full((count, 1), self._weight(count), np.float32)
            self._emit(relax.op.matmul(self.x, qop.constant(weight)))
        else:
            self._emit(relax.op.reshape(self.x, [self.batch, before, count, after]))
            self._emit(relax.op.permute_dims(self.x, list(TO_NCHW)))
            self._window([3])
            self._emit(relax.op.permute_dims(self.x, list(TO_NHWC)))
        self.shape[first:end] = [1] * (end - first)
        self._emit(relax.op.reshape(self.x, [self.batch, *self.shape[1:]]))


def _channels_last(function: relax.Function) -> set[relax.Var]:
    """Return the tensors that hold their channels last, by what made them."""
    found: set[relax.Var] = set()
    for var, value in bindings_of(function):
        read = used_vars(value)
        if qop.is_call(value, "relax.permute_dims"):
            last = [int(a) for a in value.attrs.axes or ()] == list(TO_NHWC)
        elif qop.is_call(value, *IMAGES, *ROWS):
            last = qop.is_call(value, *ROWS)
        else:
            last = bool(read) and read[0] in found
        if last:
            found.add(var)
    return found


def _runs(axes: list[int]) -> list[tuple[int, int]]:
    """Return the first and last of axes that follow each other."""
    runs: list[tuple[int, int]] = []
    for axis in axes:
        if runs and runs[-1][1] == axis - 1:
            runs[-1] = (runs[-1][0], axis)
        else:
            runs.append((axis, axis))
    return runs


@tvm.ir.transform.module_pass(opt_level=0, name="SplitReductions")
class SplitReductions:
    """Give sums and means an integer form (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with reductions that are windows or contractions."""
        return _Splitter(module).rewrite()
