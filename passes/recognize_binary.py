"""Find tensors and weights of two values in a float graph, as binary networks have them (L0).

Before, ``c`` being one positive constant, ``w`` constants of one magnitude per output channel::

    lv = sign(x)                                     sign(sign(x) + 0.1), of Larq
    lv = where(x >= 0, c, -c)                        x > 0, x < 0, x <= 0, not
    lv = where(x >= t, c, 0)                         astype(x >= t) * c
    lv = astype(x >= 0) * 2 c - c
    lv = (sign(x) - y) + y                           a straight-through gradient, exported
    lv1 = conv2d(lv * c, w)

After::

    lv = fake_quant(x, [c]) {format: "ubinary", fixed: 1}
    lv1 = conv2d(lv, fake_quant(w) {format: "binary", fixed: 1})

    lv2 = conv2d(lv, fake_quant(w1) {format: "binary"}) + conv2d(lv, fake_quant(w2) {...})

the last where ``w`` is a sum of two or three such weights (`sums_of_signs`) and ``lv`` are signs.

Of what reaches a layer only. ``sign`` gives 0 of 0 and has three values: as in the networks that
are trained so, 0 counts as positive, unless 0 is what a clip leaves of all numbers of one sign.
Clips whose ends lie on either side of a threshold are passed over. A weight that holds zeros as
well is ternary: ``int2``.

Requires canonical form with batch normalization folded, which leaves the magnitude of each output
channel one. Exporters' arithmetic on constants in float32 may spread magnitudes by `SPREAD`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmquant.formats import UBINARY
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import imported_sign, imported_weight
from tvmquant.ir.rewriter import (
    DataflowRewriter,
    bindings_of,
    span_name,
    unused_name,
    used_vars,
    with_span,
)
from tvmquant.passes.elementwise import scalar_bound
from tvmquant.passes.region_operators import is_mover
from tvmquant.passes.sums_of_signs import sums_of_signs

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[np.int64]

SIGN, SELECT, CAST = "relax.sign", "relax.where", "relax.astype"
# of x and a constant: whether what holds is the upper side, and whether 0 is a part of it
COMPARISONS = {
    "relax.greater_equal": (True, True),
    "relax.greater": (True, False),
    "relax.less": (False, False),
    "relax.less_equal": (False, True),
}
# Relative to the magnitude, or of a straight-through gradient's terms up to 1.
SPREAD = 2.0**-16
SPREAD_OF_TERMS = 2.0**-22
# A magnitude is that far above what spreads it.
LEAST_DISTINCTION = 2.0**-6
LEAST_MAGNITUDE = float(np.finfo(np.float32).tiny)


class _Signs(NamedTuple):
    """A tensor of two values: ``scale`` where ``source - threshold`` is not below 0.

    With another ``zero_point`` than the middle the two values are 0 and twice the scale, or 0 and
    its negative, and ``source - threshold`` is compared with what lies between.
    """

    source: relax.Var
    scale: float
    strict: bool
    threshold: float = 0.0
    zero_point: int = UBINARY.middle


class _Recognizer(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))
        self.feeding = _reaching_layers(self.function)
        self.names: set[str] = {
            qop.attributes(value)["id"]
            for value in self.producer.values()
            if qop.is_call(value, qop.FAKE_QUANT)
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, *qop.FLOAT_CONTRACTIONS):
            return self._with_few_values(value)
        found = self._signs(var) if var in self.feeding else None
        if found is None:
            return None
        found = self._without_clip(found)
        source = self.lookup(found.source)
        if found.threshold:
            constant = qop.constant(np.float32(-found.threshold))
            source = self.emit(relax.op.add(source, constant))
        name = unused_name(span_name(value) or str(var.name), self.names)
        return imported_sign(
            source, found.scale, name=name, strict=found.strict, zero_point=found.zero_point,
            span=getattr(value, "span", None),
        )  # fmt: skip

    def _without_clip(self, found: _Signs) -> _Signs:
        """Pass over a clip whose ends lie on either side of the threshold."""
        source, threshold = found.source, found.threshold
        made = self._made(source)
        if qop.is_call(made, "relax.add"):
            shift = _number(made.args[1])
            if shift is None:
                return found
            made, threshold = self._made(made.args[0]), threshold - shift
        if not qop.is_call(made, "relax.clip") or found.zero_point != UBINARY.middle:
            return found
        low, high = (scalar_bound(end) for end in made.args[1:])
        if not low < threshold < high:
            return found
        return self._without_clip(found._replace(source=made.args[0], threshold=threshold))

    # -- signs ------------------------------------------------------------------------------------

    def _made(self, expr: relax.Expr) -> relax.Expr | None:
        """Return what makes a tensor, by whatever name."""
        made = self.producer.get(expr) if isinstance(expr, relax.Var) else None
        while isinstance(made, relax.Var):
            made = self.producer.get(made)
        return made

    def _signs(self, expr: relax.Expr) -> _Signs | None:
        """Return what a tensor is the sign of; None if it is none."""
        call = self._made(expr)
        if qop.is_call(call, SIGN):
            return self._sign(call)
        if qop.is_call(call, SELECT):
            return self._selected(call)
        if qop.is_call(call, CAST):
            return self._mask(call)
        if qop.is_call(call, "relax.multiply"):
            return self._scaled(call)
        if qop.is_call(call, "relax.add"):
            return self._straight_through(call) or self._shifted_mask(call)
        return None

    def _sign(self, call: relax.Call) -> _Signs | None:
        source = call.args[0]
        inner = self._made(source)
        if qop.is_call(inner, "relax.add"):
            step, first = _number(inner.args[1]), self._made(inner.args[0])
            if step is not None and 0.0 < abs(step) < 1.0 and qop.is_call(first, SIGN):
                return _Signs(first.args[0], 1.0, step < 0.0)
        if not isinstance(source, relax.Var) or self._has_one_sign(source):
            return None  # then it has 0 and 1, and 0 counts
        return _Signs(source, 1.0, False)

    def _has_one_sign(self, expr: relax.Expr) -> bool:
        """Whether a tensor is clipped at 0, and holds 0 where it would have the other sign."""
        made = self._made(expr)
        while isinstance(made, relax.Call) and is_mover(made) and len(used_vars(made)) == 1:
            made = self._made(used_vars(made)[0])
        if qop.is_call(made, "relax.clip"):
            return scalar_bound(made.args[1]) >= 0.0 or scalar_bound(made.args[2]) <= 0.0
        return qop.is_call(made, "relax.nn.relu", "relax.abs")

    def _selected(self, call: relax.Call) -> _Signs | None:
        """Read a choice between a number and its negative, or 0."""
        above, below = _number(call.args[1]), _number(call.args[2])
        compared = self._comparison(call.args[0])
        if compared is None or above is None or below is None:
            return None
        source, upper, strict, threshold = compared
        if not upper:
            above, below = below, above
        if below == 0.0 < above:
            return _step(source, above, strict, threshold)
        if above == 0.0 > below:
            scale = -below / 2.0
            return _Signs(source, scale, strict, threshold + scale, UBINARY.qmax)
        if above != -below or above <= 0.0:
            return None
        return _Signs(source, above, strict, threshold)

    def _mask(self, call: relax.Call) -> _Signs | None:
        """Read 1 where a comparison holds, else 0."""
        compared = self._comparison(call.args[0])
        if compared is None or not compared[1]:
            return None
        source, _, strict, threshold = compared
        return _step(source, 1.0, strict, threshold)

    def _comparison(self, expr: relax.Expr) -> tuple[relax.Var, bool, bool, float] | None:
        """Return what is compared with which number, whether it is to be above, and strictly."""
        call = self._made(expr)
        if qop.is_call(call, "relax.logical_not"):
            inner = self._comparison(call.args[0])
            return None if inner is None else (inner[0], not inner[1], inner[2], inner[3])
        if not qop.is_call(call, *COMPARISONS):
            return None
        upper, holds = COMPARISONS[str(call.op.name)]
        left, right = call.args
        if isinstance(right, relax.Var):
            left, right, upper = right, left, not upper
        threshold = _number(right)
        if threshold is None or not (math.isfinite(threshold) and isinstance(left, relax.Var)):
            return None  # what is compared with infinity is no number
        return left, upper, upper != holds, threshold

    def _scaled(self, call: relax.Call) -> _Signs | None:
        factor, signs = _number(call.args[1]), self._signs(call.args[0])
        if factor is None or signs is None or factor <= 0.0:
            return None
        # where 0 is a level, what lies between the levels moves with their scale
        ends = UBINARY.middle - signs.zero_point
        threshold = signs.threshold - ends * signs.scale * (factor - 1.0)
        return signs._replace(scale=signs.scale * factor, threshold=threshold)

    def _straight_through(self, call: relax.Call) -> _Signs | None:
        """Read ``(signs - y) + y``, of which a forward pass is the signs."""
        for total, other in (call.args, reversed(call.args)):
            difference = self._made(total)
            if qop.is_call(difference, "relax.subtract") and self._same(difference.args[1], other):
                return self._signs(difference.args[0])
        return None

    def _same(self, left: relax.Expr, right: relax.Expr) -> bool:
        made = self._made(left)
        return left.same_as(right) or (made is not None and made.same_as(self._made(right)))

    def _shifted_mask(self, call: relax.Call) -> _Signs | None:
        """Read ``astype(x >= 0) * 2 c - c``."""
        product, shift = self._made(call.args[0]), _number(call.args[1])
        if not qop.is_call(product, "relax.multiply") or shift is None:
            return None
        factor, cast = _number(product.args[1]), self._made(product.args[0])
        if not qop.is_call(cast, CAST) or factor is None or factor == 0.0 or factor != -2.0 * shift:
            return None
        compared = self._comparison(cast.args[0])
        if compared is None or (factor > 0.0) != compared[1]:
            return None
        source, _, strict, threshold = compared
        return _Signs(source, abs(shift), strict, threshold)

    # -- weights ----------------------------------------------------------------------------------

    def _with_few_values(self, call: relax.Call) -> relax.Expr | None:
        """Return a layer with its weight held by signs and magnitudes; None if it has others."""
        transposed = qop.is_call(call, "relax.nn.conv2d_transpose")
        weight = qop.constant_array(call.args[1])
        groups = int(getattr(call.attrs, "groups", 1))
        if weight is None or weight.ndim not in (2, 4) or (transposed and groups > 1):
            return None
        axis = 0 if qop.is_call(call, "relax.nn.conv2d") else 1
        rows = np.moveaxis(weight, axis, 0)
        found = signs_and_magnitudes(rows)
        if found is not None:
            return self._held(call, *found, axis, span_name(call))
        sums = None if transposed or not self._is_binary(call.args[0]) else sums_of_signs(rows)
        if sums is None:
            return None
        total: relax.Expr | None = None
        name = span_name(call)
        for index, (signs, magnitudes) in enumerate(zip(*sums, strict=True)):
            own = f"{name}:{index + 1}" if index else name
            layer = self._held(call, signs, magnitudes, axis, own)
            layer = self.emit(with_span(layer, own))
            total = (
                layer if total is None else self.emit(with_span(relax.op.add(total, layer), name))
            )
        return total

    def _held(
        self, call: relax.Call, signs: Array, magnitudes: FloatArray, axis: int, name: str
    ) -> relax.Call:
        """Return a layer whose weight is signs, output channels first, times magnitudes."""
        scale = magnitudes.astype(np.float32)
        held = imported_weight(
            np.moveaxis(signs, 0, axis), scale, np.zeros(scale.shape, np.int64), axis=axis,
            groups=int(getattr(call.attrs, "groups", 1)), name=name,
        )  # fmt: skip
        args = [self.lookup(call.args[0]), self.emit(held, "weight_q")]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _is_binary(self, expr: relax.Expr) -> bool:
        """Whether a tensor is signs, or what is moved or picked of them."""
        made = self._made(expr)
        while isinstance(made, relax.Call) and is_mover(made) and len(used_vars(made)) == 1:
            expr = used_vars(made)[0]
            made = self._made(expr)
        if qop.is_call(made, qop.FAKE_QUANT):
            return str(qop.attributes(made)["format"]) == UBINARY.name
        return self._signs(expr) is not None


def _step(source: relax.Var, height: float, strict: bool, threshold: float) -> _Signs:
    """Return what is 0 below a threshold, else ``height``."""
    return _Signs(source, height / 2.0, strict, threshold - height / 2.0, UBINARY.qmin)


def signs_and_magnitudes(
    weight: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int64], FloatArray] | None:
    """Return the signs (-1, 0, 1) of a weight and the magnitude of each output channel.

    Parameters
    ----------
    weight : float array, output channels first

    Returns
    -------
    (int64 array like weight, float64 array (O,)) or None
        None where a channel has several magnitudes, where all numbers have one sign, or where there
        are hardly more numbers than channels, as of a matrix that only picks inputs.
    """
    rows = weight.reshape(len(weight), -1)
    # the first channel tells most weights, of millions of numbers, from those
    if rows.shape[1] < 2 or _upper(rows[:1]) is None:
        return None
    upper = _upper(rows)
    if upper is None:
        return None
    rows = rows.astype(np.float64)
    magnitudes = np.abs(rows)
    scale = magnitudes.max(axis=1)
    empty = scale == 0.0  # their sign does not matter
    steps = np.where(empty[:, None] | (upper & (rows > 0.0)), 1, np.where(upper, -1, 0))
    several = (steps != 0).sum(axis=1) > 1
    if not (np.any(steps < 0) and np.any(steps[~empty] > 0) and np.all(several)):
        return None
    counted = np.where(upper, magnitudes, 0.0).sum(axis=1) / np.maximum(upper.sum(axis=1), 1)
    scale = np.where(empty, LEAST_MAGNITUDE, counted)
    return steps.reshape(weight.shape).astype(np.int64), scale


def _upper(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Return which numbers have the greatest magnitude of their row; None unless others are 0."""
    magnitudes = np.abs(rows.astype(np.float64))
    scale = magnitudes.max(axis=1, keepdims=True)
    spread = np.maximum(scale * SPREAD, SPREAD_OF_TERMS)
    spread = np.minimum(spread, scale * LEAST_DISTINCTION)
    upper = magnitudes >= scale - 2.0 * spread
    few = np.all(np.isfinite(magnitudes)) and np.all(upper | (magnitudes <= spread))
    return upper if few else None


def _reaching_layers(function: relax.Function) -> set[relax.Var]:
    """Return the tensors that a layer multiplies by its weight: as they are, moved, or rounded."""
    found: set[relax.Var] = set()
    for var, value in reversed(list(bindings_of(function))):
        if qop.is_call(value, *qop.FLOAT_CONTRACTIONS):
            if isinstance(value.args[0], relax.Var):
                found.add(value.args[0])
        elif var in found and (isinstance(value, relax.Var) or _hands_on(value)):
            found.update(used_vars(value))
    return found


def _hands_on(value: relax.Expr) -> bool:
    if not isinstance(value, relax.Call):
        return False
    # of several scales, brought to one
    scaled = qop.is_call(value, "relax.multiply") and len(used_vars(value)) == 1
    chosen = qop.is_call(value, SELECT, "relax.logical_not", *COMPARISONS)
    return scaled or chosen or is_mover(value) or qop.is_call(value, qop.FAKE_QUANT)


def _number(expr: Any) -> float | None:
    """Return the one value of a constant; None of anything else."""
    array = qop.constant_array(expr)
    if array is None or array.size == 0 or not np.all(array == array.reshape(-1)[0]):
        return None
    return float(array.reshape(-1)[0])


@tvm.ir.transform.module_pass(opt_level=0, name="RecognizeBinary")
class RecognizeBinary:
    """Write signs and weights of two values as fake_quants (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module; what made the signs is dead and removed."""
        return _Recognizer(module).rewrite()
