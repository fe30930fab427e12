"""Round tensors to scales that came with the model before they are moved (L0).

Before::

    lv = conv2d(x, w); lv1 = reshape(lv, s); lv2 = relu(lv1); lv3 = fake_quant(lv2)
    lv = concat((a, b)); lv1 = pad(lv, 1.0); lv2 = fake_quant(lv1)

After::

    lv = conv2d(x, w); lv1 = relu(lv); lv2 = fake_quant(lv1); lv3 = reshape(lv2, s)
    a1 = fake_quant(a); b1 = fake_quant(b); lv = concat((a1, b1)); lv1 = pad(lv, rounded 1.0)

so that a layer ends in the rounding to its scale, which is what one kernel computes, and tensors of
several scales are rounded once. What moves numbers, or picks the greatest of some, gives the same
either way where there is one scale.

Requires canonical form, and comes after what writes products and sums with movers
(`ArrangeMatmuls`, `SplitReductions`). What is moved of one tensor that is rounded already, or of an
input, stays as it is: its integers are moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.formats import UBINARY
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.passes.elementwise import scalar_bound
from tvmquant.passes.region_operators import RESHAPES

MOVERS = (*RESHAPES, "relax.strided_slice", "relax.nn.max_pool2d", "relax.nn.pad", "relax.concat")
CLIPS = ("relax.nn.relu", "relax.clip")
# of what is moved by more than so many operators the last of them are followed only
MOST_MOVERS = 64


class _Mover(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))
        # by tensor, what clips it, and what it is rounded to: the same, rounded
        self.rounded: dict[tuple[Any, ...], relax.Var] = {}
        self.count = 0

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        foreign = attrs.get("ties") == "even" and attrs["axis"] < 0  # of no export of this project
        if attrs["role"] == qop.WEIGHT or not foreign or not self._gains(value.args[0]):
            return None
        self.count = 0
        return self._rounded(value.args[0], (), value, MOST_MOVERS)

    def _made(self, expr: relax.Expr) -> tuple[relax.Expr, relax.Expr | None]:
        """Return a tensor by its first name, and what makes it."""
        made = self.producer.get(expr) if isinstance(expr, relax.Var) else None
        while isinstance(made, relax.Var):  # another name
            expr, made = made, self.producer.get(made)
        return expr, made

    def _gains(self, expr: relax.Expr) -> bool:
        """Whether something is moved that is not rounded, is of several scales, or padded.

        The scale of what is padded need not hold the constant that is put beside it.
        """
        _, made = self._made(expr)
        direct = True
        for _ in range(MOST_MOVERS):
            if qop.is_call(made, "relax.concat"):
                return not direct or any(
                    isinstance(root, relax.Call) and not qop.is_call(root, qop.FAKE_QUANT)
                    for _, root in map(self._made, _fields(made))
                )
            if not qop.is_call(made, *MOVERS, *CLIPS):
                break
            if qop.is_call(made, "relax.nn.pad") and getattr(made.attrs, "pad_value", 0.0) != 0.0:
                return True
            direct = direct and not qop.is_call(made, *MOVERS)
            _, made = self._made(made.args[0])
        return not direct and isinstance(made, relax.Call) and not qop.is_call(made, qop.FAKE_QUANT)

    def _rounded(
        self, expr: relax.Expr, clips: tuple[relax.Call, ...], to: relax.Call, depth: int
    ) -> relax.Var:
        """Emit a tensor, clipped and rounded."""
        expr, made = self._made(expr)
        key = (expr, *map(id, clips), *_parameters(to))
        if key in self.rounded:
            return self.rounded[key]
        fields = _fields(made) if qop.is_call(made, *MOVERS, *CLIPS) and depth else []
        if qop.is_call(made, *CLIPS) and depth and self._moves(made.args[0]):
            result = self._rounded(made.args[0], (made, *clips), to, depth - 1)
        elif qop.is_call(made, *MOVERS) and all(isinstance(f, relax.Var) for f in fields) and depth:
            parts: list[relax.Expr] = [self._rounded(f, clips, to, depth - 1) for f in fields]
            result = self.emit(self._moved(made, parts, clips, to))
        else:
            result = self._end(expr, clips, to)
        self.rounded[key] = result
        return result

    def _moves(self, expr: relax.Expr) -> bool:
        return qop.is_call(self._made(expr)[1], *MOVERS, *CLIPS)

    def _end(self, expr: relax.Expr, clips: tuple[relax.Call, ...], to: relax.Call) -> relax.Var:
        """Emit a tensor's clips and its rounding."""
        source = self.lookup(expr)
        for clip in clips:
            args = [source, *clip.args[1:]]
            source = self.emit(relax.Call(clip.op, args, clip.attrs, clip.ty_args, clip.span))
        attrs = qop.attributes(to)
        if self.count:
            attrs = {**attrs, "id": f"{attrs['id']}.{self.count}"}
        self.count += 1
        return self.emit(qop.emit(qop.FAKE_QUANT, [source, *to.args[1:]], attrs, to.span))

    def _moved(
        self,
        move: relax.Call,
        parts: list[relax.Expr],
        clips: tuple[relax.Call, ...],
        to: relax.Call,
    ) -> relax.Call:
        """Return a mover of what is clipped and rounded already."""
        if qop.is_call(move, "relax.concat"):
            new = relax.op.concat(parts, int(move.attrs.axis))
        elif qop.is_call(move, "relax.nn.pad"):
            value = np.float64(getattr(move.attrs, "pad_value", 0.0))
            for clip in clips:
                low, high = (0.0, np.inf) if qop.is_call(clip, CLIPS[0]) else _bounds(clip)
                value = np.clip(value, low, high)
            widths = [int(v) for v in move.attrs.pad_width]
            new = relax.op.nn.pad(parts[0], widths, str(move.attrs.pad_mode), _rounded(value, to))
        else:
            new = relax.Call(move.op, [*parts, *move.args[1:]], move.attrs, move.ty_args)
        return relax.Call(new.op, new.args, new.attrs, new.ty_args, move.span)


def _fields(call: relax.Call) -> list[relax.Expr]:
    first = call.args[0]
    return list(first.fields) if isinstance(first, relax.Tuple) else [first]


def _parameters(to: relax.Call) -> tuple[Any, ...]:
    attrs = qop.attributes(to)
    arrays = [qop.constant_array(array).tobytes() for array in to.args[1:]]
    return (*arrays, attrs["format"], attrs["qmin"], attrs["qmax"], attrs.get("ties"))


def _bounds(clip: relax.Call) -> tuple[float, float]:
    return scalar_bound(clip.args[1]), scalar_bound(clip.args[2])


def _rounded(value: Any, to: relax.Call) -> float:
    """Return the number that a fake_quant makes of one, ties to even."""
    scale, zero = (float(qop.constant_array(a).reshape(-1)[0]) for a in to.args[1:3])
    attrs = qop.attributes(to)
    if attrs["format"] == UBINARY.name:
        middle = scale * (attrs["qmin"] + 1 - zero)
        upper = value > middle if attrs["strict"] else value >= middle
        return float(middle + scale if upper else middle - scale)
    steps = np.clip(np.rint(value / scale), attrs["qmin"] - zero, attrs["qmax"] - zero)
    return float(steps * scale)


@tvm.ir.transform.module_pass(opt_level=0, name="QuantizeBeforeMoving")
class QuantizeBeforeMoving:
    """Exchange fake_quants with the movers before them (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module."""
        return _Mover(module).rewrite()
